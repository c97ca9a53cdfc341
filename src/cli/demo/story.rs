//! What happens, step by step, and is it what must happen? Each step says what it measured, from answers,
//! from the audit files and from the metrics of this very run; or it fails.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use http::{Method, StatusCode};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout};

use super::app;
use super::client::{self, Answer, Client};
use super::evidence::{Audit, Mark, Metrics};
use super::load::Load;
use super::props::{self, CHECKOUT, FEED, INVOICES, Issuing, OWNER, READS};
use super::stage::{Handle, LOOK_EVERY, PATIENCE, Stage};
use super::stranger::{self, Stranger};
use super::telling::{Progress, several, time};
use crate::outcome::Outcome;

/// What a step has to tell: for people, the most important line first, and for machines.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) lines: Vec<String>,
    pub(super) detail: Value,
}

/// A step's end.
type Ended = anyhow::Result<((), Told)>;

fn told(lines: impl Into<Vec<String>>, detail: Value) -> Ended {
    let lines = lines.into();
    Ok(((), Told { lines, detail }))
}

/// Everything that plays a part.
#[derive(Debug)]
pub(super) struct Story<'a> {
    stage: &'a mut Stage,
    progress: Progress,
    issuer: Handle,
    issuing: Issuing,
    /// Where the application itself listens.
    app: SocketAddr,
    checkout: Sidecar,
    invoices: Sidecar,
}

/// A sidecar that runs.
#[derive(Debug)]
struct Sidecar {
    http: SocketAddr,
    tcp: SocketAddr,
    metrics: SocketAddr,
    audit: Audit,
}

impl<'a> Story<'a> {
    /// Starts all processes, and waits until both sidecars are ready.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub(super) async fn start(
        stage: &'a mut Stage,
        progress: Progress,
        lifetime: Duration,
    ) -> anyhow::Result<(Self, Told)> {
        let began = Instant::now();
        let dir = stage.dir().to_owned();
        let issuing = Issuing {
            lifetime,
            rotate_every: None,
            checkout: true,
        };

        progress.say("starting the issuer and the application");
        stage.write("policy/reads.cedar", &props::READS_CEDAR)?;
        stage.write("policy/follows.cedar", &props::FOLLOWS_CEDAR)?;
        let config = stage.write("issuer/issuer.yaml", &props::issuer(&dir, issuing))?;
        let issuer = stage.start(
            "issuer",
            ["issuer".as_ref(), "--config".as_ref(), config.as_os_str()],
        )?;
        let plain = stage.start("app", ["demo-app"])?;
        let socket = dir.join("issuer.sock");
        let connects = async || UnixStream::connect(&socket).await.ok();
        stage.wait("the issuer's socket", connects).await?;
        let app = bound(stage, &plain, "app").await?;
        let feed = bound(stage, &plain, "feed").await?;

        progress.say("starting the sidecars");
        let config = props::invoices(&dir, app, feed);
        let handle = run(stage, "invoices", &config)?;
        let invoices = Sidecar {
            http: bound(stage, &handle, "inbound for invoices").await?,
            tcp: bound(stage, &handle, &format!("inbound for {FEED}")).await?,
            metrics: bound(stage, &handle, "metrics").await?,
            audit: Audit::at(dir.join("invoices/audit.jsonl")),
        };
        let config = props::caller(&dir, "checkout", invoices.http, invoices.tcp);
        let handle = run(stage, "checkout", &config)?;
        let checkout = Sidecar::caller(stage, &handle, &invoices).await?;
        for sidecar in [&invoices, &checkout] {
            let ready = async || sidecar.is_ready().await.then_some(());
            stage.wait("a sidecar that is ready", ready).await?;
        }

        let took = began.elapsed();
        let lives = humantime::format_duration(lifetime);
        let mut pids = serde_json::Map::new();
        for process in stage.processes() {
            pids.insert(process.name.into(), process.pid().into());
        }
        let lines = vec![
            format!("{} processes are ready after {}", pids.len(), time(took)),
            format!("certificates live {lives} and are renewed at half of that"),
            "the issuer tells the sidecars apart by their executables".into(),
        ];
        let detail = json!({
            "ready_ms": ms(took),
            "dir": dir,
            "processes": pids,
            "svid_lifetime_ms": ms(lifetime),
            "checkout": checkout.identity().await?,
            "invoices": invoices.identity().await?,
        });
        let story = Self {
            stage,
            progress,
            issuer,
            issuing,
            app,
            checkout,
            invoices,
        };
        Ok((story, Told { lines, detail }))
    }

    /// A granted request passes, and the application learns who asked.
    pub(super) async fn allowed(&mut self) -> Ended {
        self.progress.say("GET /v1/invoices/7");
        let mark = self.invoices.audit.mark();
        let trace = trace_id();
        let mut client = Client::connect(self.checkout.http).await?;
        let headers = [
            ("traceparent", &*format!("00-{trace}-00000000000000d0-01")),
            // What an application, or whoever speaks through it, may try.
            (
                "x-forwarded-client-cert",
                "URI=spiffe://demo.doorward/admin",
            ),
        ];
        let first = client.send(Method::GET, INVOICE, &headers).await?;
        expect(&first, StatusCode::OK)?;
        let seen = first.json()["x-forwarded-client-cert"].clone();
        let seen = seen.as_str().unwrap_or_default();
        let caller = seen
            .split([';', ','])
            .find_map(|part| part.strip_prefix("URI="));
        ensure!(
            caller == Some(CHECKOUT) && !seen.contains("admin"),
            "expected the application to see {CHECKOUT}, but it saw {seen:?}"
        );
        let record = self
            .record(mark, "the request's audit record", |record| {
                record["trace_id"] == trace
            })
            .await?;
        ensure!(
            record["decision"] == "allow" && record["grant"]["id"] == READS,
            "expected the audit to name the grant {READS}, but it says {record}"
        );
        let mut times = Vec::with_capacity(MORE);
        for _ in 0..MORE {
            let answer = client.get(INVOICE).await?;
            expect(&answer, StatusCode::OK)?;
            times.push(answer.took);
        }
        times.sort_unstable();
        let median = times[MORE / 2];
        let lines = [
            format!(
                "GET {INVOICE} got 200 in {}, {MORE} more in {} at the median",
                time(first.took),
                time(median)
            ),
            format!("by the grant {READS} of {OWNER}"),
            format!("the application was told who asked: {CHECKOUT}"),
        ];
        told(
            lines,
            json!({
                "status": 200,
                "latency_ms": ms(median),
                "first_ms": ms(first.took),
                "requests": MORE + 1,
                "grant": record["grant"],
                "policy_generation": record["generation"],
                "principal": record["principal"],
                "seen_by_app": seen,
                "caller": caller,
            "forged_header_removed": !seen.contains("admin"),
            }),
        )
    }

    /// What no grant allows is refused by the proxy, and the audit says why.
    pub(super) async fn denied(&mut self) -> Ended {
        let mark = self.invoices.audit.mark();
        let before = self.seen().await?;
        let mut client = Client::connect(self.checkout.http).await?;
        let mut lines = Vec::new();
        let mut refusals = Vec::new();
        for (method, path) in [(Method::POST, INVOICE), (Method::GET, "/v1/customers")] {
            self.progress.say(format!("{method} {path}"));
            let answer = client.send(method.clone(), path, &[]).await?;
            let (record, reason) = self.refused(mark, &answer, "denied").await?;
            lines.push(format!(
                "{method} {path} got 403 from the proxy in {}; on record: {reason}",
                time(answer.took)
            ));
            refusals.push(json!({
                "method": method.as_str(),
                "path": path,
                "status": answer.status.as_u16(),
                "latency_ms": ms(answer.took),
                "reason": reason,
                "request_id": record["id"],
                "principal": record["principal"]["id"],
            }));
        }
        let after = self.seen().await?;
        ensure!(
            before == after,
            "expected the application to see nothing, but it saw {before} before and {after} after"
        );
        lines.push("the application saw neither of them".into());
        told(
            lines,
            json!({
                "status": 403,
                "by": "proxy",
                "reason": refusals[0]["reason"],
                "refusals": refusals,
                "seen_by_app": 0,
            }),
        )
    }

    /// Nobody who is not registered gets in: neither through a sidecar nor without one.
    pub(super) async fn stranger_refused(&mut self) -> Ended {
        let before = self.seen().await?;
        self.progress
            .say("a sidecar asks the issuer for an identity, but nobody registered it");
        let config = props::caller(
            self.stage.dir(),
            "stranger",
            self.invoices.http,
            self.invoices.tcp,
        );
        let handle = run(self.stage, "stranger", &config)?;
        let sidecar = Sidecar::caller(self.stage, &handle, &self.invoices).await?;
        let turned_away = async || {
            let count = Metrics::of(sidecar.metrics).await.ok()?;
            let count = count.count("doorward_identity_source_failures_total", &[]);
            (count >= 2).then_some(count)
        };
        let refusals = self
            .stage
            .wait("the issuer to refuse the stranger twice", turned_away)
            .await?;
        let ready = client::get(sidecar.metrics, "/ready").await?;
        expect(&ready, StatusCode::SERVICE_UNAVAILABLE)?;
        let closed = TcpStream::connect(sidecar.http).await.is_err();
        ensure!(
            closed,
            "expected the stranger's sidecar to accept no connection, but it did"
        );
        let why = handle
            .log
            .cause("identity cannot be fetched")
            .unwrap_or_default();
        self.stage.end(&handle).await;

        let mut lines = vec![format!(
            "an unregistered sidecar asked the issuer {refusals} times, in vain: not ready"
        )];
        let mut knocks = Vec::new();
        for (stranger, how) in [
            (Stranger::SelfMade(CHECKOUT), "a self-made certificate"),
            (Stranger::WithoutCertificate, "no certificate"),
        ] {
            self.progress.say(format!("a client comes with {how}"));
            let mark = self.invoices.audit.mark();
            let alert = stranger::knock(self.invoices.http, stranger).await?;
            let record = self
                .record(
                    mark,
                    "the audit record of the refused handshake",
                    |record| record["kind"] == "connection" && record["principal"].is_null(),
                )
                .await?;
            let word = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
            let (reason, outcome) = (word("reason"), word("outcome"));
            ensure!(
                !reason.is_empty(),
                "expected the audit to say why, but it says {record}"
            );
            lines.push(format!(
                "a client with {how} got TLS alert {alert}; on record: {reason}"
            ));
            knocks.push(json!({
                "with": how,
                "alert": alert,
                "reason": reason,
                "outcome": outcome,
            }));
        }
        let after = self.seen().await?;
        ensure!(
            before == after,
            "expected the application to see nothing, but it saw {before} before and {after} after"
        );
        lines.push("the application saw none of them".into());
        told(
            lines,
            json!({
                "issuer_refusals": refusals,
                "issuer_said": why,
                "sidecar_ready": false,
                "readiness": ready.json()["conditions"],
                "handshakes": knocks,
                "seen_by_app": 0,
            }),
        )
    }

    /// Certificates change under load, and no request notices.
    pub(super) async fn rotation(&mut self) -> Ended {
        let mark = self.invoices.audit.mark();
        let before = self.rotated().await?;
        let load = Load::start(self.checkout.http, INVOICE, CONNECTIONS);
        let began = Instant::now();
        self.issue(Issuing {
            rotate_every: Some(self.issuing.lifetime.min(OFTEN)),
            ..self.issuing
        })?;
        let rotations = loop {
            let now = self.rotated().await?;
            let rotations = [now[0] - before[0], now[1] - before[1]];
            let fewest = rotations[0].min(rotations[1]);
            let (requests, failed) = load.so_far();
            self.progress.say(format!(
                "{fewest} of {ROTATIONS} rotations, {requests} requests, {failed} failed"
            ));
            if fewest >= ROTATIONS {
                break rotations;
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "expected {ROTATIONS} rotations on both sides within {PATIENCE:?}, but there were {rotations:?}"
            );
            sleep(LOOK_EVERY * 10).await;
        };
        // The last of them is to be used, too.
        self.progress
            .say("a little longer, with the last certificates");
        sleep(AFTERGLOW).await;
        let tally = load.finish().await;
        let took = began.elapsed();
        self.issue(Issuing {
            rotate_every: None,
            ..self.issuing
        })?;
        let fewest = rotations[0].min(rotations[1]);
        if tally.failed > 0 {
            let failure = tally.failure.unwrap_or_default();
            bail!(
                "expected no failed request, but {} of {} failed during {fewest} rotations; one of them: {failure}",
                tally.failed,
                tally.requests
            );
        }
        let (p50, p99) = tally
            .percentile(50)
            .zip(tally.percentile(99))
            .context("expected requests, but there were none")?;
        let records = self.invoices.audit.since(mark);
        let serials = records
            .iter()
            .filter_map(|record| record["principal"]["serial"].as_str());
        let serials = serials.collect::<std::collections::BTreeSet<_>>().len();
        let lines = [
            format!(
                "{fewest} rotations on each side in {}, {}, {} failed",
                time(took),
                several(tally.requests, "request"),
                tally.failed
            ),
            format!(
                "over {CONNECTIONS} connections, none of them lost; p50 {}, p99 {}",
                time(p50),
                time(p99)
            ),
            format!("invoices saw {serials} certificates of checkout, one after the other"),
        ];
        told(
            lines,
            json!({
                "rotations": fewest,
                "rotations_checkout": rotations[0],
                "rotations_invoices": rotations[1],
                "requests": tally.requests,
                "failed": tally.failed,
                "connections": CONNECTIONS,
                "p50_ms": ms(p50),
                "p99_ms": ms(p99),
                "took_ms": ms(took),
                "certificates_seen": serials,
            }),
        )
    }

    /// A grant is removed while connections that stand on it are open.
    pub(super) async fn grant_withdrawn(&mut self) -> Ended {
        self.progress
            .say("opening an HTTP connection and a TCP session");
        let mark = self.invoices.audit.mark();
        let mut client = Client::connect(self.checkout.http).await?;
        expect(&client.get(INVOICE).await?, StatusCode::OK)?;
        let mut session = Session::open(self.checkout.tcp).await?;

        self.progress.say("removing the grants' files");
        let began = Instant::now();
        self.stage.remove("policy/reads.cedar")?;
        self.stage.remove("policy/follows.cedar")?;
        let http = async {
            let refusal = until_refused(&mut client, began).await?;
            anyhow::Ok((refusal, began.elapsed()))
        };
        let tcp = async {
            session.closed(PATIENCE).await?;
            anyhow::Ok(began.elapsed())
        };
        let ((refusal, http), tcp) = tokio::try_join!(http, tcp)?;
        let (_, reason) = self.refused(mark, &refusal, "denied").await?;
        let record = self
            .record(mark, "the audit record of the TCP session", |record| {
                record["kind"] == "connection" && record["service"] == FEED
            })
            .await?;
        ensure!(
            record["outcome"] == "permit_withdrawn",
            "expected the TCP session to end as permit_withdrawn, but the audit says {record}"
        );

        self.progress.say("putting them back");
        let back = Instant::now();
        self.stage
            .write("policy/reads.cedar", &props::READS_CEDAR)?;
        self.stage
            .write("policy/follows.cedar", &props::FOLLOWS_CEDAR)?;
        self.passes_again(&mut client).await?;
        let back = back.elapsed();
        let lines = [
            format!(
                "open HTTP connection: 403 {} after its grant was removed",
                time(http)
            ),
            format!(
                "open TCP session: closed {} after its grant was removed",
                time(tcp)
            ),
            format!(
                "put back, the grant was in force on the same connection after {}",
                time(back)
            ),
        ];
        told(
            lines,
            json!({
                "http_ms": ms(http),
                "http_status": refusal.status.as_u16(),
                "http_reason": reason,
                "tcp_ms": ms(tcp),
                "tcp_outcome": record["outcome"],
                "tcp_grant": record["grant"],
                "restored_ms": ms(back),
            }),
        )
    }

    /// Nobody vouches for checkout any more.
    pub(super) async fn issuance_stopped(&mut self) -> Ended {
        self.progress
            .say("opening an HTTP connection and a TCP session");
        let mark = self.invoices.audit.mark();
        let mut client = Client::connect(self.checkout.http).await?;
        expect(&client.get(INVOICE).await?, StatusCode::OK)?;
        let mut session = Session::open(self.checkout.tcp).await?;
        let certificate = self.checkout.identity().await?;

        self.progress.say("removing checkout's registration");
        let began = Instant::now();
        self.issue(Issuing {
            checkout: false,
            ..self.issuing
        })?;
        let refusal = until_refused(&mut client, began).await?;
        let refused = began.elapsed();
        let error = refusal.json()["error"].clone();
        ensure!(
            error == "identity_unavailable",
            "expected checkout's sidecar to have no identity, but it says {}",
            refusal.text()
        );
        ensure!(
            !self.checkout.is_ready().await,
            "expected checkout's sidecar not to be ready, but it is"
        );

        let end = certificate["not_after"].as_str().unwrap_or_default();
        self.progress
            .say(format!("its certificate would last until {end}"));
        session.closed(self.issuing.lifetime + PATIENCE).await?;
        let closed = SystemTime::now();
        let ended = began.elapsed();
        let record = self
            .record(mark, "the audit record of the TCP session", |record| {
                record["kind"] == "connection" && record["service"] == FEED
            })
            .await?;
        let not_after = record["principal"]["not_after"]
            .as_str()
            .unwrap_or_default();
        let ran_out = humantime::parse_rfc3339(not_after).with_context(|| {
            format!("expected a certificate's end in the audit record {record}")
        })?;
        let late = closed.duration_since(ran_out).unwrap_or_default();
        ensure!(
            late < A_SECOND,
            "expected the TCP session to end with its certificate at {not_after}, but it lived {} longer",
            time(late)
        );

        self.progress.say("registering checkout again");
        let back = Instant::now();
        self.issue(Issuing {
            checkout: true,
            ..self.issuing
        })?;
        self.passes_again(&mut client).await?;
        let back = back.elapsed();
        let lines = [
            format!(
                "refused {} after checkout's registration was removed: {} {}",
                time(refused),
                refusal.status.as_u16(),
                error.as_str().unwrap_or_default()
            ),
            format!(
                "the open TCP session ended with it, {} after the removal",
                time(ended)
            ),
            format!("registered again, checkout was served after {}", time(back)),
        ];
        told(
            lines,
            json!({
                "refused_ms": ms(refused),
                "status": refusal.status.as_u16(),
                "error": error,
                "svid": certificate,
                "tcp_closed_ms": ms(ended),
                "tcp_certificate_ended": not_after,
                "tcp_closed_late_ms": ms(late),
                "tcp_outcome": record["outcome"],
                "restored_ms": ms(back),
            }),
        )
    }

    /// What is on record about all of it.
    pub(super) async fn recorded(&mut self) -> Ended {
        self.progress.say("reading the audit and the metrics");
        let labels = [&*format!("grant=\"{READS}\""), "decision=\"allowed\""];
        let by_grant =
            |record: &Value| record["grant"]["id"] == READS && record["decision"] == "allow";
        let audit = &self.invoices.audit;
        let address = self.invoices.metrics;
        let agree = async || {
            let records = audit.since(Mark::default());
            let metrics = Metrics::of(address).await.ok()?;
            let counted = metrics.count("doorward_decisions_total", &labels);
            let written = records.iter().filter(|record| by_grant(record)).count();
            (written > 0 && counted == written as u64).then_some((records, metrics))
        };
        let what = "as many decisions in the audit as in the metrics";
        let (records, metrics) = self.stage.wait(what, agree).await?;
        let last = records
            .iter()
            .rfind(|record| by_grant(record))
            .context("expected a record of an allowed request")?;
        let refused = records
            .iter()
            .filter(|record| record["decision"] == "deny")
            .count();
        let principal = &last["principal"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let theirs = Metrics::of(self.checkout.metrics).await?;
        let shown: Vec<String> = [
            metrics.series("doorward_decisions_total", &labels).next(),
            theirs
                .series("doorward_identity_rotations_total", &[])
                .next(),
        ]
        .into_iter()
        .map(|line| line.unwrap_or_default().to_owned())
        .collect();
        ensure!(
            last["grant"]["owner"] == OWNER && principal["id"] == CHECKOUT,
            "expected the record to name grant, owner and principal, but it says {last}"
        );
        let mut lines = vec![
            format!(
                "{} in the audit file of invoices, {refused} of them denials",
                several(records.len() as u64, "record")
            ),
            format!(
                "the last one allowed: certificate {}, grant {}, owner {}",
                text(&principal["serial"]),
                text(&last["grant"]["id"]),
                text(&last["grant"]["owner"])
            ),
            "the metrics count the same:".into(),
        ];
        lines.extend(shown.iter().cloned());
        told(
            lines,
            json!({
                "records": records.len(),
                "denials": refused,
                "grant": last["grant"],
                "principal": principal,
                "metrics": shown,
            }),
        )
    }

    /// What to try while everything goes on running, each with its purpose.
    pub(super) fn offers(&self) -> Vec<(String, &'static str)> {
        let dir = self.stage.dir();
        let (http, tcp) = (self.checkout.http, self.checkout.tcp);
        let audit = self.invoices.audit.path().display();
        vec![
            (
                format!("curl -i http://{http}{INVOICE}"),
                "Ask as checkout, through its sidecar",
            ),
            (
                format!("curl -i -X POST http://{http}{INVOICE}"),
                "Ask for something that no grant allows",
            ),
            (
                format!("{}", dir.join("policy/reads.cedar").display()),
                "Edit this grant, save it, and ask again",
            ),
            (
                format!("tail -f {audit}"),
                "Read who did what, and by which grant",
            ),
            (
                format!("curl http://{}/metrics", self.invoices.metrics),
                "Read the metrics of invoices' sidecar",
            ),
            (
                format!("curl http://{}/ready", self.checkout.metrics),
                "Ask checkout's sidecar how it is",
            ),
            (
                format!("nc {tcp}").replace(':', " "),
                "Open a TCP session to the feed",
            ),
        ]
    }

    /// The first process that has ended although it should not.
    pub(super) fn fallen(&mut self) -> Option<String> {
        self.stage.fallen()
    }

    /// Changes what the issuer issues.
    fn issue(&mut self, issuing: Issuing) -> anyhow::Result<()> {
        let text = props::issuer(self.stage.dir(), issuing);
        self.stage.write("issuer/issuer.yaml", &text)?;
        self.issuer.signal(Signal::SIGHUP);
        self.issuing = issuing;
        Ok(())
    }

    /// How many requests and TCP sessions have reached the application.
    async fn seen(&self) -> anyhow::Result<Value> {
        Ok(client::get(self.app, app::SEEN).await?.json())
    }

    /// How many rotations checkout and invoices have had.
    async fn rotated(&self) -> anyhow::Result<[u64; 2]> {
        Ok([
            self.checkout.rotated().await?,
            self.invoices.rotated().await?,
        ])
    }

    /// Waits for a record in invoices' audit file.
    async fn record(
        &mut self,
        mark: Mark,
        what: &str,
        is: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let audit = &self.invoices.audit;
        let find = async || audit.since(mark).into_iter().find(|record| is(record));
        self.stage.wait(what, find).await
    }

    /// Checks that invoices' sidecar, not its application, refused with 403, and finds the reason in the
    /// audit.
    async fn refused(
        &mut self,
        mark: Mark,
        answer: &Answer,
        error: &str,
    ) -> anyhow::Result<(Value, String)> {
        expect(answer, StatusCode::FORBIDDEN)?;
        let problem = answer.json();
        ensure!(
            problem["error"] == error && answer.headers.contains_key("proxy-status"),
            "expected the proxy to refuse with {error}, but the answer is {}",
            answer.text()
        );
        let id = &problem["request_id"];
        let record = self
            .record(mark, "the refusal's audit record", |record| {
                record["id"] == *id
            })
            .await?;
        let reason = record["reason"].as_str().unwrap_or_default().to_owned();
        ensure!(
            record["decision"] == "deny" && !reason.is_empty(),
            "expected the audit to say why it was denied, but it says {record}"
        );
        Ok((record, reason))
    }

    /// Waits until requests pass on `client`'s connection.
    async fn passes_again(&mut self, client: &mut Client) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = client.get(INVOICE).await?;
            if answer.status == StatusCode::OK {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "expected to be served again within {PATIENCE:?}, but the answer is still {}: {}",
                answer.status,
                answer.text()
            );
            sleep(LOOK_EVERY * 4).await;
        }
    }
}

impl Sidecar {
    async fn caller(stage: &mut Stage, handle: &Handle, invoices: &Self) -> anyhow::Result<Self> {
        Ok(Self {
            http: bound(stage, handle, &format!("outbound to {}", invoices.http)).await?,
            tcp: bound(stage, handle, &format!("outbound to {}", invoices.tcp)).await?,
            metrics: bound(stage, handle, "metrics").await?,
            audit: Audit::at(stage.dir().join(handle.name).join("audit.jsonl")),
        })
    }

    async fn is_ready(&self) -> bool {
        let answer = client::get(self.metrics, "/ready").await;
        answer.is_ok_and(|answer| answer.status == StatusCode::OK)
    }

    async fn rotated(&self) -> anyhow::Result<u64> {
        let metrics = Metrics::of(self.metrics).await?;
        Ok(metrics.count("doorward_identity_rotations_total", &[]))
    }

    /// The identity in force, and when its certificate ends.
    async fn identity(&self) -> anyhow::Result<Value> {
        let metrics = Metrics::of(self.metrics).await?;
        let id = [CHECKOUT, INVOICES].into_iter().find(|id| {
            let label = format!("spiffe_id=\"{id}\"");
            metrics.count("doorward_identity_info", &[&label]) == 1
        });
        let not_after = metrics.sum("doorward_identity_not_after_timestamp_seconds", &[]);
        let not_after = Duration::try_from_secs_f64(not_after).unwrap_or_default();
        let not_after = humantime::format_rfc3339_seconds(UNIX_EPOCH + not_after);
        Ok(json!({ "spiffe_id": id, "not_after": not_after.to_string() }))
    }
}

/// An open TCP session through both sidecars.
struct Session(TcpStream);

impl Session {
    /// Opens one, and sees to it that bytes come back from the application.
    async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let opening = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(b"any news?\n").await?;
            let mut back = [0; 10];
            stream.read_exact(&mut back).await?;
            Ok::<_, std::io::Error>(stream)
        };
        let opened = timeout(PATIENCE, opening).await;
        let opened = opened
            .map_err(Into::into)
            .and_then(|opened| opened.map_err(anyhow::Error::from));
        Ok(Self(opened.context(
            "expected bytes to come back over a TCP session",
        )?))
    }

    /// Waits until it is closed, however that is done.
    async fn closed(&mut self, patience: Duration) -> anyhow::Result<()> {
        let mut byte = [0];
        match timeout(patience, self.0.read(&mut byte)).await {
            Ok(Ok(0) | Err(_)) => Ok(()),
            Ok(Ok(_)) => bail!("expected the TCP session to be closed, but more bytes came"),
            Err(_) => {
                bail!("expected the TCP session to be closed, but it is open after {patience:?}")
            }
        }
    }
}

fn run(stage: &mut Stage, name: &'static str, config: &str) -> anyhow::Result<Handle> {
    let config = stage.write(&format!("{name}/doorward.yaml"), config)?;
    stage.start(
        name,
        ["run".as_ref(), "--config".as_ref(), config.as_os_str()],
    )
}

/// Waits until a process says where it listens.
async fn bound(stage: &mut Stage, handle: &Handle, what: &str) -> anyhow::Result<SocketAddr> {
    let listens = async || handle.log.bound(what);
    stage
        .wait(&format!("{} to listen ({what})", handle.name), listens)
        .await
}

/// Asks on one open connection until the answer is no longer the application's.
async fn until_refused(client: &mut Client, began: Instant) -> anyhow::Result<Answer> {
    loop {
        let answer = client.get(INVOICE).await?;
        // One that was under way as its grant went; the next is refused for want of a grant.
        let interrupted = answer.json()["error"] == Outcome::PermitWithdrawn.label();
        if answer.status != StatusCode::OK && !interrupted {
            return Ok(answer);
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "expected the open connection to be refused, but it was still served after {PATIENCE:?}"
        );
        sleep(LOOK_EVERY).await;
    }
}

fn expect(answer: &Answer, status: StatusCode) -> anyhow::Result<()> {
    let got = answer.status;
    ensure!(
        got == status,
        "expected {status}, but got {got}: {}",
        answer.text()
    );
    Ok(())
}

/// A trace id that no other request of this run has.
fn trace_id() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("{:032x}", now.as_nanos())
}

/// Milliseconds with three decimals, for machines.
fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// What checkout may read.
const INVOICE: &str = "/v1/invoices/7";
/// Requests that the latency of one is taken from.
const MORE: usize = 50;
/// Connections that load comes from.
const CONNECTIONS: usize = 8;
/// Rotations to be seen on each side.
const ROTATIONS: u64 = 3;
/// How often certificates are renewed while they are watched.
const OFTEN: Duration = Duration::from_millis(1500);
/// How long load goes on after the last rotation.
const AFTERGLOW: Duration = Duration::from_millis(500);
const A_SECOND: Duration = Duration::from_secs(1);
