//! `doorward identity`: who is this sidecar, or who would it be, by which proof, and whom does it trust?
//!
//! Nothing is written anywhere and the key is never shown: copies of an identity are what short lifetimes
//! are there to avoid.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use http::{Request, StatusCode, header};
use http_body_util::Full;

use crate::config::Config;
use crate::identity::shown::Shown;
use crate::identity::{Provider, Settings, Source, SpiffeId};
use crate::live::{self, Change};
use crate::{runtime, web};

/// Show an identity with its chain and bundles, never its key. Exits with 0 if it is valid, 1 if there is
/// none or it has ended, 2 if nobody could be asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The admin listener of a running sidecar: shows the identity in force there.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// A SPIFFE Workload API socket, as in unix:///run/spire/agent.sock: shows what it gives this process.
    #[arg(long, value_name = "URL", conflicts_with = "admin")]
    workload_api: Option<String>,
    /// A sidecar's configuration: shows what its source gives this process.
    #[arg(
        short,
        long,
        value_name = "FILE",
        conflicts_with_all = ["admin", "workload_api"],
        required_unless_present_any = ["admin", "workload_api"]
    )]
    config: Option<PathBuf>,
    /// With --workload-api: which SVID, if there are several.
    #[arg(long, value_name = "SPIFFE_ID", requires = "workload_api")]
    spiffe_id: Option<SpiffeId>,
    /// With --workload-api: the same by its hint.
    #[arg(long, requires = "workload_api")]
    hint: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Asks, and answers on standard output.
///
/// # Errors
/// If nobody could be asked.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let json = args.json;
    let shown = runtime::control()?.block_on(async {
        match args.admin {
            Some(address) => admin(address).await,
            None => source(&settings(args)?).await,
        }
    })?;
    if json {
        println!("{}", serde_json::to_string_pretty(&shown)?);
    } else {
        print!("{shown}");
    }
    Ok(match shown.is_valid() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn settings(args: Args) -> anyhow::Result<Settings> {
    if let Some(path) = args.config {
        return Ok(Config::open(&path)?.identity);
    }
    let socket = args.workload_api.unwrap_or_default();
    let socket = Source::workload_api(&socket).with_context(|| {
        format!("`{socket}` is not a Workload API socket: write `unix://` and an absolute path")
    })?;
    Ok(Settings {
        spiffe_id: args.spiffe_id,
        hint: args.hint,
        ..Settings::of(socket)
    })
}

/// What the source gives us, as the first answer.
async fn source(settings: &Settings) -> anyhow::Result<Shown> {
    let mut provider = Provider::new(settings);
    let next = tokio::time::timeout(PATIENCE, live::Source::next(&mut provider)).await;
    let change = next.with_context(|| format!("{} does not answer", settings.source))??;
    Ok(match change {
        Change::Replace(material) => Shown::of(&material, settings, SystemTime::now()),
        Change::Withdraw => Shown::nobody(settings),
    })
}

/// What is in force in a running sidecar.
async fn admin(address: SocketAddr) -> anyhow::Result<Shown> {
    let asked = tokio::time::timeout(PATIENCE, ask(address)).await;
    asked
        .context("it does not answer")
        .flatten()
        .with_context(|| format!("cannot ask the admin listener at {address}"))
}

async fn ask(address: SocketAddr) -> anyhow::Result<Shown> {
    let server = web::Server {
        host: address.ip().to_string(),
        port: address.port(),
        tls: None,
    };
    let request = Request::get("/identity")
        .header(header::HOST, server.host_header())
        .body(Full::default())?;
    let response = server.ask(request, LARGEST).await?;
    let status = response.status();
    if status == StatusCode::NOT_FOUND {
        bail!("it shows no identity: is this `admin.listen`, and not `metrics.listen`?");
    }
    serde_json::from_slice(response.body())
        .with_context(|| format!("its answer ({status}) makes no sense"))
}

/// More than a Workload API takes to attest us.
const PATIENCE: Duration = Duration::from_secs(15);

/// Far more than a thousand bundles need.
const LARGEST: usize = 16 << 20;
