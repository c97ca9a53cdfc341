//! Where is a destination right now? All addresses of its name, asked for again as they run out.
//!
//! One task on the control thread asks for each name of the configuration, whatever number of workers,
//! listeners and connections use it. What was known last stays in force while nobody answers, or while the
//! name server says that there is nothing: an address is no identity, and whoever answers at one that is
//! out of date still has to prove who it is.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::system_conf::read_system_conf;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry};

use crate::document::Node;
use crate::live::Live;
use crate::telemetry::chain;

/// The section `dns`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Name servers to ask instead of those in `/etc/resolv.conf`, whose search domains and options hold
    /// nevertheless.
    pub servers: Vec<SocketAddr>,
}

impl Settings {
    /// Reads the section `dns`.
    #[must_use]
    pub fn read(node: &Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let servers = section.required("servers", |node| node.one_or_more(|node| node.address()));
        Some(Self { servers: servers? })
    }
}

/// The addresses of a name, in order and each once; or why none was ever known.
pub type Addresses = Result<Vec<IpAddr>, Arc<ResolveError>>;

/// Why a name has no address.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResolveError {
    /// A name server says so.
    #[error("the name servers know no address of `{name}` ({said})")]
    Nothing {
        /// The name.
        name: String,
        /// The name server's response code, in words.
        said: String,
        /// How long that holds, by the zone's own word.
        ttl: Option<Duration>,
    },
    /// Nobody could be asked, or nobody answered usefully.
    #[error("no name server answers for `{name}`")]
    Unanswered {
        /// The name.
        name: String,
        /// What went wrong.
        #[source]
        source: NetError,
    },
}

/// The metric families of names, in the registry of the process.
#[derive(Clone, Debug)]
pub struct Metrics {
    lookups: IntCounterVec,
    addresses: IntGaugeVec,
    updated: GaugeVec,
}

impl Metrics {
    /// Registers the families.
    ///
    /// # Errors
    /// If a family of the same name is already registered.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            lookups: IntCounterVec::new(
                Opts::new(
                    "doorward_dns_lookups_total",
                    "Times that the addresses of a configured name were asked for, by what came of it.",
                ),
                &["name", "result"],
            )?,
            addresses: IntGaugeVec::new(
                Opts::new(
                    "doorward_dns_addresses",
                    "Addresses of a configured name that are in force.",
                ),
                &["name"],
            )?,
            updated: GaugeVec::new(
                Opts::new(
                    "doorward_dns_updated_timestamp_seconds",
                    "When name servers last gave an address of a configured name, the same or another; 0 before.",
                ),
                &["name"],
            )?,
        };
        registry.register(Box::new(metrics.lookups.clone()))?;
        registry.register(Box::new(metrics.addresses.clone()))?;
        registry.register(Box::new(metrics.updated.clone()))?;
        Ok(metrics)
    }
}

/// The addresses of all destinations of this process.
#[derive(Debug)]
pub struct Directory(BTreeMap<String, Arc<Live<Addresses>>>);

impl Directory {
    /// A directory of `hosts`: IP addresses, which are known at once, and names, which [`Directory::keep`]
    /// asks for.
    pub fn new<'a>(hosts: impl IntoIterator<Item = &'a str>) -> Self {
        let place = |host: &str| {
            let place = Arc::new(Live::default());
            if let Ok(address) = host.parse() {
                place.publish(Ok(vec![address]));
            }
            (host.to_owned(), place)
        };
        Self(hosts.into_iter().map(place).collect())
    }

    /// Where `host` is. A host that the directory was not made with never is anywhere.
    #[must_use]
    pub fn find(&self, host: &str) -> Arc<Live<Addresses>> {
        self.0.get(host).cloned().unwrap_or_default()
    }

    /// Keeps asking for all names, each in a task of its own on the runtime that calls this.
    pub fn keep(&self, settings: Settings, metrics: &Metrics) {
        let servers = Arc::new(Servers::new(settings));
        for (host, place) in &self.0 {
            if host.parse::<IpAddr>().is_ok() {
                continue;
            }
            let updated = metrics.updated.with_label_values(&[host]);
            updated.set(0.0);
            let name = Name {
                name: host.clone(),
                place: place.clone(),
                metrics: metrics.clone(),
                answered: None,
                failures: 0,
            };
            tokio::spawn(name.keep(servers.clone()));
        }
    }
}

/// One name, and how asking for it goes.
#[derive(Debug)]
struct Name {
    name: String,
    place: Arc<Live<Addresses>>,
    metrics: Metrics,
    /// When addresses came last.
    answered: Option<SystemTime>,
    /// Answers without an address since then.
    failures: u32,
}

impl Name {
    async fn keep(mut self, servers: Arc<Servers>) {
        loop {
            let answer = servers.ask(&self.name).await;
            let pause = self.take(answer, SystemTime::now());
            tokio::time::sleep(later(pause, fastrand::f64())).await;
        }
    }

    /// Puts an answer in force and says when to ask again.
    fn take(&mut self, answer: Result<Answer, ResolveError>, now: SystemTime) -> Duration {
        let result = match &answer {
            Ok(_) => "ok",
            Err(ResolveError::Nothing { .. }) => "no_address",
            Err(ResolveError::Unanswered { .. }) => "unanswered",
        };
        let count = self
            .metrics
            .lookups
            .with_label_values(&[&self.name, result]);
        count.inc();
        let pause = pause(&answer, self.failures);
        match answer {
            Ok(Answer { addresses, .. }) => self.replace(addresses, now),
            Err(error) => self.go_without(error, now),
        }
        pause
    }

    fn replace(&mut self, addresses: Vec<IpAddr>, now: SystemTime) {
        (self.answered, self.failures) = (Some(now), 0);
        let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let updated = self.metrics.updated.with_label_values(&[&self.name]);
        updated.set(since_epoch.as_secs_f64());
        let known = self.place.get();
        let before = known.as_ref().and_then(|known| known.value.as_ref().ok());
        if before != Some(&addresses) {
            tracing::info!(
                name = self.name,
                ?addresses,
                "the addresses of a name are in force"
            );
            let count = i64::try_from(addresses.len()).unwrap_or(i64::MAX);
            let gauge = self.metrics.addresses.with_label_values(&[&self.name]);
            gauge.set(count);
            self.place.publish(Ok(addresses));
        }
    }

    fn go_without(&mut self, error: ResolveError, now: SystemTime) {
        self.failures = self.failures.saturating_add(1);
        let told = chain(&error);
        match self.answered {
            Some(answered) => {
                let age = now.duration_since(answered).unwrap_or_default();
                let age = humantime::format_duration(Duration::from_secs(age.as_secs()));
                tracing::warn!(name = self.name, error = %told, %age, "no addresses came; the last ones stay in force");
            }
            None => {
                tracing::warn!(name = self.name, error = %told, "no addresses came, and none is known");
                self.place.publish(Err(Arc::new(error)));
            }
        }
    }
}

/// Addresses, and for how long they are good.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    addresses: Vec<IpAddr>,
    ttl: Duration,
}

/// How long to wait before a name is asked for again, after this answer and `failures` before it.
fn pause(answer: &Result<Answer, ResolveError>, failures: u32) -> Duration {
    let (time, longest) = match answer {
        Ok(Answer { ttl, .. }) => (*ttl, LONGEST),
        Err(ResolveError::Nothing { ttl: Some(ttl), .. }) => (*ttl, LONGEST_WITHOUT),
        Err(_) => (SHORTEST * 2_u32.saturating_pow(failures), LONGEST_WITHOUT),
    };
    time.clamp(SHORTEST, longest)
}

/// A fleet that started at once shall not ask at once: up to a tenth later, by `chance` from 0 to 1.
fn later(pause: Duration, chance: f64) -> Duration {
    pause + pause.mul_f64(chance / 10.0)
}

/// A name is asked for at most this often, whatever its TTL says.
const SHORTEST: Duration = Duration::from_secs(1);
/// And at least this often: a line in `/etc/hosts` has no TTL.
const LONGEST: Duration = Duration::from_secs(300);
/// The same while there is no answer with an address.
const LONGEST_WITHOUT: Duration = Duration::from_secs(15);

/// Whom we ask, by the files of this machine as they are now.
struct Servers {
    settings: Settings,
    current: Mutex<Option<(Seen, TokioResolver)>>,
}

/// When the files that say whom to ask, and what is known without asking, changed last.
type Seen = [Option<SystemTime>; 2];

impl Servers {
    fn new(settings: Settings) -> Self {
        let current = Mutex::default();
        Self { settings, current }
    }

    async fn ask(&self, name: &str) -> Result<Answer, ResolveError> {
        let unanswered = |source| ResolveError::Unanswered {
            name: name.to_owned(),
            source,
        };
        let resolver = self.resolver().map_err(unanswered)?;
        match resolver.lookup_ip(name).await {
            Ok(found) => {
                let mut addresses: Vec<_> = found.iter().collect();
                addresses.sort_unstable();
                addresses.dedup();
                if addresses.is_empty() {
                    return Err(ResolveError::Nothing {
                        name: name.to_owned(),
                        said: "no records".into(),
                        ttl: None,
                    });
                }
                let ttl = found
                    .valid_until()
                    .saturating_duration_since(Instant::now());
                Ok(Answer { addresses, ttl })
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(nothing))) => Err(ResolveError::Nothing {
                name: name.to_owned(),
                said: nothing.response_code.to_string(),
                ttl: nothing
                    .negative_ttl
                    .map(|ttl| Duration::from_secs(ttl.into())),
            }),
            Err(error) => Err(unanswered(error)),
        }
    }

    /// Made anew when one of the files has changed.
    fn resolver(&self) -> Result<TokioResolver, NetError> {
        let seen = ["/etc/resolv.conf", "/etc/hosts"].map(|path| modified(Path::new(path)));
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, resolver)) = &*current
            && *of == seen
        {
            return Ok(resolver.clone());
        }
        let resolver = self.read()?;
        *current = Some((seen, resolver.clone()));
        Ok(resolver)
    }

    fn read(&self) -> Result<TokioResolver, NetError> {
        let (system, mut options) = read_system_conf().unwrap_or_else(|error| {
            // `/etc/hosts` can answer without it.
            tracing::warn!(%error, "/etc/resolv.conf names no server");
            (ResolverConfig::default(), ResolverOpts::default())
        });
        let (domain, search, mut servers) = system.into_parts();
        if !self.settings.servers.is_empty() {
            servers = self.settings.servers.iter().map(server).collect();
        }
        // As the C library has it: `search` and the machine's own domain exclude each other.
        let domain = domain.filter(|_| search.is_empty());
        options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        // When to ask is for us to say.
        options.cache_size = 0;
        let config = ResolverConfig::from_parts(domain, search, servers);
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        builder.build()
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|of| of.modified()).ok()
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Servers").field(&self.settings).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(addresses: &[&str], ttl: u64) -> Result<Answer, ResolveError> {
        Ok(Answer {
            addresses: addresses.iter().map(|one| one.parse().unwrap()).collect(),
            ttl: Duration::from_secs(ttl),
        })
    }

    fn nothing(ttl: Option<u64>) -> Result<Answer, ResolveError> {
        Err(ResolveError::Nothing {
            name: "a".into(),
            said: "Non-Existent Domain".into(),
            ttl: ttl.map(Duration::from_secs),
        })
    }

    fn unanswered() -> Result<Answer, ResolveError> {
        Err(ResolveError::Unanswered {
            name: "a".into(),
            source: NetError::Timeout,
        })
    }

    #[test]
    fn a_name_is_asked_for_again_as_its_answer_ends_and_never_in_a_flood() {
        for (answer, failures, seconds) in [
            (answer(&["::1"], 30), 0, 30),
            (answer(&["::1"], 0), 0, 1),
            (answer(&["::1"], 86_400), 0, 300),
            (nothing(Some(5)), 0, 5),
            (nothing(Some(5)), 9, 5),
            (nothing(Some(3600)), 0, 15),
            (nothing(None), 0, 1),
            (nothing(None), 2, 4),
            (unanswered(), 0, 1),
            (unanswered(), 3, 8),
            (unanswered(), 40, 15),
        ] {
            let told = format!("{answer:?} after {failures}");
            assert_eq!(pause(&answer, failures).as_secs(), seconds, "{told}");
        }
        let pause = Duration::from_secs(10);
        assert_eq!(later(pause, 0.0), pause);
        assert_eq!(later(pause, 1.0), Duration::from_secs(11));
    }

    #[test]
    fn what_was_known_last_stays_while_nobody_answers() {
        let registry = Registry::new();
        let mut name = Name {
            name: "a".into(),
            place: Arc::default(),
            metrics: Metrics::register(&registry).unwrap(),
            answered: None,
            failures: 0,
        };
        let place = name.place.clone();
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let shown = || {
            let known = place.get().unwrap();
            (known.generation, known.value.clone().ok())
        };

        name.take(unanswered(), now);
        assert_eq!(shown(), (1, None));
        let two: Vec<IpAddr> = vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
        name.take(answer(&["127.0.0.1", "::1"], 1), now);
        assert_eq!(shown(), (2, Some(two.clone())));
        // The same again is no change, and neither is silence.
        for answer in [
            answer(&["127.0.0.1", "::1"], 1),
            unanswered(),
            nothing(None),
        ] {
            name.take(answer, now);
            assert_eq!(shown(), (2, Some(two.clone())));
        }
        name.take(answer(&["::1"], 1), now);
        assert_eq!(shown(), (3, Some(vec!["::1".parse().unwrap()])));
    }

    #[test]
    fn addresses_need_no_name_server() {
        let directory = Directory::new(["127.0.0.1", "::1", "ledger.bank.svc"]);
        let known = directory.find("::1").get().unwrap();
        assert_eq!(
            *known.value.as_ref().unwrap(),
            ["::1".parse::<IpAddr>().unwrap()]
        );
        assert!(directory.find("ledger.bank.svc").get().is_none());
        assert!(directory.find("else").get().is_none());
    }
}
