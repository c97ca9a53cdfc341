use std::time::Duration;

use ::pem::{Pem, encode};

use super::*;
use crate::identity::Bundles;
use crate::identity::testing::{Ca, HOUR, Minted, leaf};

const LEDGER: &str = "spiffe://example.org/ledger";

fn mint(ca: &Ca) -> Minted {
    ca.mint(&leaf(LEDGER))
}

fn text(der: Vec<u8>) -> String {
    encode(&Pem::new("X509 CRL", der))
}

/// Whether the lists in a file of this content revoke `minted`, which `ca` has issued.
fn revoked(content: &[u8], minted: &Minted, ca: &Ca) -> bool {
    let crls = Crls::parse(&[("list.pem".into(), content.to_vec())]).unwrap();
    let certificate = webpki::EndEntityCert::try_from(&minted.chain[0]).unwrap();
    let issuer = webpki::EndEntityCert::try_from(ca.certificate()).unwrap();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    crls.revoke(
        certificate.serial(),
        certificate.issuer(),
        &issuer.subject_public_key_info(),
        provider.signature_verification_algorithms.all,
    )
}

#[test]
fn what_its_issuer_lists_is_revoked_and_nothing_else() {
    let ca = Ca::new("example.org");
    // The same name, as after the renewal of a CA, and another key.
    let namesake = Ca::new("example.org");
    let stranger = Ca::new("other.test");
    let (bad, good) = (mint(&ca), mint(&ca));
    let list = ca.crl(&[&bad], HOUR * 2);
    let overdue = ca.crl(&[&bad], HOUR / 2);
    let both = text(namesake.crl(&[], HOUR * 2)) + &text(list.clone());
    for (what, content, minted, expected) in [
        ("in DER", list.clone(), &bad, true),
        ("in PEM", text(list.clone()).into_bytes(), &bad, true),
        (
            "the second of two of that name",
            both.into_bytes(),
            &bad,
            true,
        ),
        ("overdue", overdue, &bad, true),
        ("not listed", list, &good, false),
        (
            "listed by a namesake",
            namesake.crl(&[&bad], HOUR * 2),
            &bad,
            false,
        ),
        (
            "listed by a stranger",
            stranger.crl(&[&bad], HOUR * 2),
            &bad,
            false,
        ),
    ] {
        assert_eq!(revoked(&content, minted, &ca), expected, "{what}");
    }
}

#[test]
fn lists_tell_when_they_are_overdue() {
    let ca = Ca::new("example.org");
    let crls = Crls::parse(&[("a.crl".into(), ca.crl(&[], HOUR / 2))]).unwrap();
    let due = crls.next_update().unwrap();
    assert_eq!(crls.overdue(due - Duration::from_secs(1)).count(), 0);
    let late: Vec<_> = crls.overdue(due).collect();
    assert!(
        matches!(late[..], [(issuer, since)] if issuer.contains("example.org") && since == due)
    );
}

#[test]
fn what_is_no_list_is_refused_by_the_name_of_its_file() {
    let ca = Ca::new("example.org");
    let dir = tempfile::tempdir().unwrap();
    let good = text(ca.crl(&[], HOUR * 2));
    let mut truncated = ca.crl(&[], HOUR * 2);
    truncated.truncate(truncated.len() - 1);
    for (content, told) in [
        (&b""[..], "there is no certificate revocation list in"),
        (
            &good.as_bytes()[..good.len() / 2],
            "holds no whole certificate revocation list",
        ),
        (&truncated, "cannot be used"),
        (ca.certificate(), "cannot be used"),
    ] {
        let path = dir.path().join("list.pem");
        std::fs::write(&path, content).unwrap();
        let error = Crls::open(&path).unwrap_err().to_string();
        assert!(
            error.contains(told) && error.contains("list.pem"),
            "{error}"
        );
    }
    std::fs::remove_file(dir.path().join("list.pem")).unwrap();
    for path in [dir.path().to_owned(), dir.path().join("gone.pem")] {
        assert!(Crls::open(&path).is_err(), "{}", path.display());
    }
    for name in ["a.pem", "b.crl", ".hidden.crl", "README"] {
        std::fs::write(dir.path().join(name), &good).unwrap();
    }
    assert_eq!(Crls::open(dir.path()).unwrap().len(), 2);
}

/// A provider that gives what the test sends it.
struct Given(tokio::sync::mpsc::UnboundedReceiver<Change<Material>>);

impl Source for Given {
    type Item = Material;
    type Error = std::convert::Infallible;

    async fn next(&mut self) -> Result<Change<Material>, Self::Error> {
        match self.0.recv().await {
            Some(change) => Ok(change),
            None => std::future::pending().await,
        }
    }
}

async fn bundles(source: &mut Revoking<Given>) -> Option<Arc<Bundles>> {
    match source.next().await.unwrap() {
        Change::Replace(material) => Some(material.bundles().clone()),
        Change::Withdraw => None,
    }
}

#[tokio::test]
async fn a_new_list_makes_a_new_identity_of_the_last_one() {
    let ca = Ca::new("example.org");
    let lists = |due| Crls::parse(&[("a.crl".into(), ca.crl(&[], due))]).unwrap();
    let (first, second) = (lists(HOUR * 2), lists(HOUR * 3));
    let crls = Arc::new(Live::default());
    crls.publish(first.clone());
    let (give, given) = tokio::sync::mpsc::unbounded_channel();
    let mut source = Revoking::new(Given(given), crls.clone());
    give.send(Change::Replace(ca.material("/ledger", &[])))
        .unwrap();
    assert_eq!(*bundles(&mut source).await.unwrap().crls(), first);
    crls.publish(second.clone());
    let changed = bundles(&mut source).await.unwrap();
    assert_eq!(*changed.crls(), second);
    assert!(changed.get(&ca.domain).is_some());
    // What was withdrawn does not come back with a list.
    give.send(Change::Withdraw).unwrap();
    assert!(bundles(&mut source).await.is_none());
    crls.publish(first.clone());
    give.send(Change::Replace(ca.material("/ledger", &[])))
        .unwrap();
    assert_eq!(*bundles(&mut source).await.unwrap().crls(), first);
}

/// A provider that gives one identity and is gone.
struct Gone(Option<Material>);

impl Source for Gone {
    type Item = Material;
    type Error = &'static str;

    async fn next(&mut self) -> Result<Change<Material>, Self::Error> {
        self.0.take().map(Change::Replace).ok_or("gone")
    }
}

#[tokio::test]
async fn a_new_list_counts_while_the_provider_is_down() {
    let ca = Ca::new("example.org");
    let crls = Arc::new(Live::default());
    let gone = Gone(Some(ca.material("/ledger", &[])));
    let mut source = Revoking::new(gone, crls.clone());
    assert!(matches!(source.next().await, Ok(Change::Replace(_))));
    assert!(source.next().await.is_err());
    for due in 2..20 {
        let list = ca.crl(&[], HOUR * due);
        crls.publish(Crls::parse(&[("a.crl".into(), list)]).unwrap());
        assert!(
            matches!(source.next().await, Ok(Change::Replace(_))),
            "{due}"
        );
        assert!(source.next().await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_list_waits_for_no_pause_between_two_attempts() {
    let ca = Ca::new("example.org");
    let crls = Arc::new(Live::default());
    let gone = Gone(Some(ca.material("/ledger", &[])));
    let live = Arc::new(Live::default());
    let keeping = {
        let (source, live) = (Revoking::new(gone, crls.clone()), live.clone());
        tokio::spawn(async move { crate::live::keep(source, &live, |_| {}).await })
    };
    live.wait().await;
    // Long enough for the pauses to have grown.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let mut changes = live.changes();
    for due in 2..20 {
        let published = tokio::time::Instant::now();
        let list = ca.crl(&[], HOUR * due);
        crls.publish(Crls::parse(&[("a.crl".into(), list)]).unwrap());
        changes.changed().await.unwrap();
        assert_eq!(published.elapsed(), Duration::ZERO, "{due}");
    }
    keeping.abort();
}

#[tokio::test]
async fn lists_are_read_again_and_broken_ones_are_told() {
    let ca = Ca::new("example.org");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("list.pem");
    std::fs::write(&path, text(ca.crl(&[], HOUR * 2))).unwrap();
    let mut lists = Lists::new(path.clone());
    let mut next = async || {
        let next = tokio::time::timeout(Duration::from_secs(20), lists.next());
        match next.await.expect("a change within 20 seconds") {
            Ok(Change::Replace(crls)) => Ok(crls.len()),
            Ok(Change::Withdraw) => panic!("files never withdraw"),
            Err(error) => Err(error.to_string()),
        }
    };
    assert_eq!(next().await, Ok(1));
    std::fs::write(&path, "-----BEGIN X509 CRL-----\n").unwrap();
    assert!(next().await.unwrap_err().contains("list.pem"));
    let two = text(ca.crl(&[], HOUR * 2)) + &text(ca.crl(&[], HOUR * 3));
    std::fs::write(&path, two).unwrap();
    assert_eq!(next().await, Ok(2));
}
