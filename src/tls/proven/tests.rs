use std::time::Duration;

use rustls_pki_types::CertificateDer;

use super::*;
use crate::identity::testing::{Ca, HOUR, leaf};
use crate::identity::{Bundles, DEFAULT_MAX_PEER_LIFETIME, Material};
use crate::live::{Change, Source};
use crate::tls::verify::{Rules, Side, VerifyError};
use crate::tls::{Endpoint, Endpoints};

const LEDGER: &str = "spiffe://example.org/ledger";

const MINUTE: Duration = Duration::from_secs(60);

const SECOND: Duration = Duration::from_secs(1);

fn rules(bundles: Bundles) -> Rules {
    Rules {
        bundles: Arc::new(bundles),
        max_peer_lifetime: HOUR,
        proven: Arc::default(),
    }
}

type Chain = Vec<CertificateDer<'static>>;

fn found(rules: &Rules, chain: &Chain, side: Side, now: SystemTime) -> Result<String, VerifyError> {
    let proved = rules.prove(&chain[0], &chain[1..], side, now);
    proved.map(|peer| peer.id().to_string())
}

/// Chains of every kind, and the times at which something about them changes.
fn world() -> (Bundles, Vec<Chain>, Vec<SystemTime>) {
    let now = SystemTime::now();
    let root = Ca::with("example.org", |params| {
        params.not_after = (now + MINUTE * 50).into();
    });
    let between = root.intermediate(|params| {
        params.not_before = (now - MINUTE * 4).into();
        params.not_after = (now + MINUTE * 5).into();
    });
    // The same name and key, later.
    let renewed = root.reissue(&between, |params| {
        params.not_before = (now + MINUTE * 2).into();
        params.not_after = (now + MINUTE * 55).into();
    });
    let stranger = root.intermediate(|_| {});
    let minted = between.mint(&leaf(LEDGER));
    let [first, above] = &minted.chain[..] else {
        panic!("a leaf below one intermediate");
    };
    let (first, above) = (first.clone(), above.clone());
    let mut lasting = leaf(LEDGER);
    lasting.not_after = (now + HOUR * 2).into();
    let mut outliving = leaf(LEDGER);
    outliving.not_after = (now + MINUTE * 58).into();
    let mut serving = leaf(LEDGER);
    serving.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let chains = vec![
        vec![first.clone(), above.clone()],
        vec![first.clone(), renewed.clone()],
        vec![first.clone(), above.clone(), renewed.clone()],
        vec![first.clone(), renewed, above],
        vec![first.clone(), stranger.certificate().clone()],
        vec![first],
        root.mint(&leaf(LEDGER)).chain,
        root.mint(&lasting).chain,
        root.mint(&outliving).chain,
        root.mint(&serving).chain,
        Ca::new("example.org").mint(&leaf(LEDGER)).chain,
        vec![CertificateDer::from(vec![0x30])],
    ];
    let changes = [-4, -1, 0, 2, 5, 30, 50, 55, 58].map(|minutes: i64| {
        let distance = MINUTE * u32::try_from(minutes.abs()).unwrap();
        match minutes < 0 {
            true => now - distance,
            false => now + distance,
        }
    });
    let times = changes.into_iter().flat_map(|change| {
        let half = SECOND / 2;
        [
            change - SECOND,
            change - half,
            change,
            change + half,
            change + SECOND,
        ]
    });
    (
        [root.bundle()].into_iter().collect(),
        chains,
        times.collect(),
    )
}

#[test]
fn what_is_remembered_gives_nobody_more_than_verifying_anew() {
    let (bundles, chains, times) = world();
    let mut asked: Vec<_> = (0..chains.len())
        .flat_map(|chain| times.iter().map(move |now| (chain, *now)))
        .flat_map(|(chain, now)| [(chain, now, Side::Client), (chain, now, Side::Server)])
        .collect();
    let cold: Vec<_> = asked
        .iter()
        .map(|(chain, now, side)| found(&rules(bundles.clone()), &chains[*chain], *side, *now))
        .collect();
    let mut expected: Vec<_> = asked.drain(..).zip(cold).collect();
    assert!(expected.iter().any(|(_, found)| found.is_ok()));

    let mut order = fastrand::Rng::with_seed(7);
    for _ in 0..8 {
        let warm = rules(bundles.clone());
        for ((chain, now, side), expected) in &expected {
            let found = found(&warm, &chains[*chain], *side, *now);
            assert_eq!(found, *expected, "chain {chain}, {side:?}, at {now:?}");
        }
        let Verifications {
            anew, remembered, ..
        } = &warm.proven.verifications;
        assert!(remembered.get() > 100 && anew.get() > 100);
        order.shuffle(&mut expected);
    }
}

#[test]
fn a_peer_is_remembered_for_as_long_as_its_path_holds() {
    let (bundles, chains, _) = world();
    let rules = rules(bundles);
    let now = SystemTime::now();
    let prove = |chain: &Chain| {
        let proved = rules.prove(&chain[0], &chain[1..], Side::Server, now);
        proved.unwrap()
    };
    let first = prove(&chains[0]);
    assert!(Arc::ptr_eq(&first, &prove(&chains[0])));
    assert!(first.not_after() < first.leaf().not_after);
    assert!(
        rules
            .proven
            .known(&first.proof, first.not_after())
            .is_none()
    );
    // Another intermediate is another chain.
    assert!(!Arc::ptr_eq(&first, &prove(&chains[2])));
    // The root ends before this leaf does.
    let outliving = prove(&chains[8]);
    let root_end = rules
        .bundles
        .iter()
        .next()
        .unwrap()
        .1
        .next_end(now)
        .unwrap();
    assert!(root_end < outliving.not_after());
    assert!(rules.proven.known(&outliving.proof, root_end).is_none());
    assert_eq!(rules.proven.verifications.anew.get(), 3);
    assert_eq!(rules.proven.verifications.remembered.get(), 1);
}

#[test]
fn what_is_remembered_is_bounded_in_bytes() {
    let minted = Ca::new("example.org").mint(&leaf(LEDGER));
    let now = SystemTime::now();
    let window = Window {
        from: now,
        until: now + HOUR,
    };
    let peer = |number: usize, bytes: usize| {
        let mut proof = [0; 32];
        proof[..8].copy_from_slice(&number.to_be_bytes());
        Arc::new(Peer {
            leaf: Arc::new(crate::identity::svid::parse(&minted.chain[0]).unwrap()),
            chain: vec![vec![0; bytes].into()],
            not_after: window.until,
            fingerprint: [0; 32],
            proof,
            side: Side::Client,
        })
    };
    let proven = Proven::default();
    proven.remember(&peer(0, LONGEST_CHAIN + 1), window);
    assert_eq!(proven.size(), (0, 0));
    for _ in 0..2 {
        proven.remember(&peer(0, LONGEST_CHAIN), window);
        assert_eq!(proven.size(), (1, LONGEST_CHAIN));
    }
    let most = MOST_BYTES / LONGEST_CHAIN;
    for number in 0..most * 2 {
        proven.remember(&peer(number, LONGEST_CHAIN), window);
    }
    assert_eq!(proven.size(), (most, MOST_BYTES));
}

/// Yields what it holds, and then fails.
struct Script(Vec<Change<Material>>);

impl Source for Script {
    type Item = Material;
    type Error = &'static str;

    async fn next(&mut self) -> Result<Change<Material>, Self::Error> {
        match self.0.is_empty() {
            true => Err("nothing is left"),
            false => Ok(self.0.remove(0)),
        }
    }
}

#[tokio::test]
async fn what_was_found_by_other_bundles_is_forgotten() {
    let ca = Ca::new("example.org");
    let material = |ca: &Ca| ca.material("/us", &[]);
    let script = Script(vec![
        Change::Replace(material(&ca)),
        Change::Replace(material(&ca)),
        Change::Withdraw,
    ]);
    let counts = Verifications::default();
    let mut source = Endpoints::new(script, DEFAULT_MAX_PEER_LIFETIME, counts.clone());
    let minted = ca.mint(&leaf(LEDGER));
    let mut asked = 0;
    let mut prove = |endpoint: &Endpoint| {
        for _ in 0..2 {
            found(
                &endpoint.rules,
                &minted.chain,
                Side::Client,
                SystemTime::now(),
            )
            .unwrap();
        }
        asked += 1;
        assert_eq!((counts.anew.get(), counts.remembered.get()), (asked, asked));
        assert_eq!(endpoint.rules.proven.size().0, 1);
    };
    let Ok(Change::Replace(first)) = source.next().await else {
        panic!("an endpoint");
    };
    prove(&first);
    let Ok(Change::Replace(second)) = source.next().await else {
        panic!("an endpoint");
    };
    assert_eq!(first.rules.proven.size(), (0, 0));
    prove(&second);
    assert!(matches!(source.next().await, Ok(Change::Withdraw)));
    assert_eq!(second.rules.proven.size(), (0, 0));
    // A failure changes nothing.
    assert!(source.next().await.is_err());
}
