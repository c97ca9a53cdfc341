//! What is there to show of an identity? Everything but the key, for people and for programs.

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Material, Settings, Source, svid};
use crate::live::Snapshot;

/// Who somebody is, by which proof, and whom they trust, at one time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// Where the identity comes from.
    pub source: String,
    /// How many identities were put in force up to this one; none if it is not in force anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Since when it is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// And for how long, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<u64>,
    /// The identity; none if there is none.
    pub svid: Option<Svid>,
    /// The trust bundles that came with it, by trust domain.
    pub bundles: Vec<TrustBundle>,
    /// How many certificate revocation lists are in force.
    pub revocation_lists: usize,
}

/// An X.509-SVID without its key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Svid {
    /// Whose it is.
    pub spiffe_id: String,
    /// Whether it is within its time.
    pub valid: bool,
    /// How long it lasts, in seconds; 0 once it has ended.
    pub left_seconds: u64,
    /// Leaf first.
    pub chain: Vec<Certificate>,
}

/// The roots of one trust domain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrustBundle {
    /// Its name.
    pub trust_domain: String,
    /// Those that have ended, too: they vouch for nobody.
    pub roots: Vec<Certificate>,
}

/// One certificate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// Distinguished name of its owner; often empty in a leaf.
    pub subject: String,
    /// Distinguished name of its issuer.
    pub issuer: String,
    /// Serial number, in lower-case hex.
    pub serial: String,
    /// Start of its validity, RFC 3339.
    pub not_before: String,
    /// End of its validity, RFC 3339.
    pub not_after: String,
    /// SHA-256 of the whole certificate in DER, in lower-case hex.
    pub sha256: String,
}

impl Shown {
    /// A source that has no identity to show.
    #[must_use]
    pub fn nobody(source: &Settings) -> Self {
        Self {
            source: source.source.to_string(),
            generation: None,
            since: None,
            age_seconds: None,
            svid: None,
            bundles: Vec::new(),
            revocation_lists: 0,
        }
    }

    /// What `source` gave.
    #[must_use]
    pub fn of(material: &Material, source: &Settings, now: SystemTime) -> Self {
        let leaf = material.leaf();
        let chain = material.certified().cert.iter();
        let bundles = material
            .bundles()
            .iter()
            .map(|(domain, bundle)| TrustBundle {
                trust_domain: domain.to_string(),
                roots: bundle.certificates().filter_map(Certificate::of).collect(),
            });
        Self {
            svid: Some(Svid {
                spiffe_id: leaf.id.to_string(),
                valid: leaf.not_before <= now && now < leaf.not_after,
                left_seconds: seconds_between(now, leaf.not_after),
                chain: chain.filter_map(Certificate::of).collect(),
            }),
            bundles: bundles.collect(),
            revocation_lists: material.bundles().crls().len(),
            ..Self::nobody(source)
        }
    }

    /// The same, in force as `snapshot` says.
    #[must_use]
    pub fn in_force<T>(self, snapshot: &Snapshot<T>, now: SystemTime) -> Self {
        Self {
            generation: Some(snapshot.generation),
            since: Some(instant(snapshot.since)),
            age_seconds: Some(seconds_between(snapshot.since, now)),
            ..self
        }
    }

    /// Whether there is an identity that proves something.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.svid.as_ref().is_some_and(|svid| svid.valid)
    }
}

impl Certificate {
    /// None if it cannot be read, which what is in force can.
    fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let (not_before, not_after) = svid::validity(der).ok()?;
        Some(Self {
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            serial: svid::hex(certificate.raw_serial()),
            not_before: instant(not_before),
            not_after: instant(not_after),
            sha256: svid::hex(digest::digest(&digest::SHA256, der).as_ref()),
        })
    }
}

fn instant(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn seconds_between(from: SystemTime, to: SystemTime) -> u64 {
    to.duration_since(from).unwrap_or_default().as_secs()
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WorkloadApi(socket) => f.write_str(socket),
            Self::Files(files) => write!(
                f,
                "{}, {} and {}",
                files.cert.display(),
                files.key.display(),
                files.bundle.display()
            ),
        }
    }
}

/// For people: a table.
impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: Vec<[String; 2]> = Vec::new();
        let mut row = |name: &str, value: String| rows.push([name.to_owned(), value]);
        match &self.svid {
            Some(svid) => row("SPIFFE ID", svid.spiffe_id.clone()),
            None => row("SPIFFE ID", "none: there is no identity".into()),
        }
        row("source", self.source.clone());
        if let Some(svid) = &self.svid {
            let left = humantime::format_duration(Duration::from_secs(svid.left_seconds));
            let leaf = svid.chain.first();
            let (from, to) = leaf.map_or(("", ""), |leaf| (&leaf.not_before, &leaf.not_after));
            let told = match (svid.valid, svid.left_seconds) {
                (true, _) => format!("{from} to {to}, {left} left"),
                (false, 0) => format!("{from} to {to}: it has ended"),
                (false, _) => format!("{from} to {to}: it has not begun"),
            };
            row("valid", told);
        }
        if let (Some(generation), Some(since), Some(age)) =
            (self.generation, &self.since, self.age_seconds)
        {
            let age = humantime::format_duration(Duration::from_secs(age));
            row(
                "generation",
                format!("{generation}, since {since}, for {age}"),
            );
        }
        if self.revocation_lists > 0 {
            row("revocation lists", self.revocation_lists.to_string());
        }
        for [name, value] in rows {
            writeln!(f, "{name:<17} {value}")?;
        }
        if let Some(svid) = &self.svid {
            table(f, "chain", &svid.chain)?;
        }
        for bundle in &self.bundles {
            let title = format!("bundle of {}", bundle.trust_domain);
            table(f, &title, &bundle.roots)?;
        }
        Ok(())
    }
}

fn table(f: &mut fmt::Formatter<'_>, title: &str, rows: &[Certificate]) -> fmt::Result {
    writeln!(f, "\n{title}")?;
    if rows.is_empty() {
        writeln!(f, "  no root: nobody of it is trusted")?;
    }
    for certificate in rows {
        let Certificate {
            subject,
            issuer,
            serial,
            not_after,
            sha256,
            ..
        } = certificate;
        let subject = if subject.is_empty() { "-" } else { subject };
        writeln!(f, "  until {not_after}  serial {serial}")?;
        writeln!(f, "    subject {subject}")?;
        writeln!(f, "    issuer  {issuer}")?;
        writeln!(f, "    sha256  {sha256}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::{Ca, leaf};
    use crate::live::Live;

    fn settings() -> Settings {
        Settings::of(Source::WorkloadApi("unix:///run/agent.sock".into()))
    }

    fn shown(now: impl FnOnce(&Material) -> SystemTime) -> Shown {
        let ca = Ca::new("example.org");
        let other = Ca::new("other.test");
        let between = ca.intermediate(|_| {});
        let minted = between.mint(&leaf("spiffe://example.org/ledger"));
        let bundles = [ca.bundle(), other.bundle()].into_iter().collect();
        let live = Live::default();
        live.publish(minted.material(bundles).unwrap());
        let snapshot = live.get().unwrap();
        let now = now(&snapshot.value);
        Shown::of(&snapshot.value, &settings(), now).in_force(&snapshot, now)
    }

    #[test]
    fn everything_but_the_key_is_shown() {
        let shown = shown(|_| SystemTime::now() + Duration::from_secs(1));
        let svid = shown.svid.as_ref().unwrap();
        assert_eq!(svid.spiffe_id, "spiffe://example.org/ledger");
        assert_eq!(svid.chain.len(), 2);
        assert_eq!(svid.chain[0].issuer, svid.chain[1].subject);
        assert!(
            svid.valid && (1700..1800).contains(&svid.left_seconds),
            "{svid:?}"
        );
        let domains: Vec<_> = shown
            .bundles
            .iter()
            .map(|each| &*each.trust_domain)
            .collect();
        assert_eq!(domains, ["example.org", "other.test"]);
        assert_eq!(shown.generation, Some(1));
        let json = serde_json::to_string(&shown).unwrap();
        assert_eq!(serde_json::from_str::<Shown>(&json).unwrap(), shown);
        let table = shown.to_string();
        for told in [
            "SPIFFE ID         spiffe://example.org/ledger\n",
            "source            unix:///run/agent.sock\n",
            "\nchain\n",
            "\nbundle of example.org\n",
            "\nbundle of other.test\n",
            &svid.chain[0].sha256,
        ] {
            assert!(table.contains(told), "{told}\n{table}");
        }
    }

    #[test]
    fn what_has_ended_is_shown_as_such() {
        let shown = shown(|material| material.leaf().not_after);
        assert!(!shown.is_valid());
        assert!(shown.to_string().contains("it has ended"), "{shown}");
        let nobody = Shown::nobody(&settings());
        assert!(!nobody.is_valid());
        assert!(
            nobody.to_string().contains("there is no identity"),
            "{nobody}"
        );
    }
}
