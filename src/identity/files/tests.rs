use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use ::pem::{Pem, encode};

use super::*;
use crate::identity::testing::{Ca, HOUR, Minted, id, leaf};
use crate::watch::QUIET;

const LEDGER: &str = "spiffe://example.org/ledger";

struct Scene {
    dir: tempfile::TempDir,
    ca: Ca,
}

impl Scene {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            ca: Ca::new("example.org"),
        }
    }

    /// With a sound identity in its files.
    fn filled() -> (Self, Minted) {
        let scene = Self::new();
        let minted = scene.ca.mint(&leaf(LEDGER));
        scene.write("bundle.pem", &certificates_pem([scene.ca.certificate()]));
        scene.put(&minted);
        (scene, minted)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// As a careful tool does it: whole, by renaming, the key for its owner alone.
    fn write(&self, name: &str, text: &str) {
        let beside = self.path(".new");
        std::fs::write(&beside, text).unwrap();
        std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(beside, self.path(name)).unwrap();
    }

    fn put(&self, minted: &Minted) {
        self.write("cert.pem", &certificates_pem(&minted.chain));
        self.write("key.pem", &key_pem(minted));
    }

    fn source(&self) -> Files {
        self.source_with("bundle.pem", None)
    }

    fn source_with(&self, bundle: &str, wanted: Option<&str>) -> Files {
        let settings = Settings {
            cert: self.path("cert.pem"),
            key: self.path("key.pem"),
            bundle: self.path(bundle),
        };
        Files::new(settings, wanted.map(id))
    }
}

fn certificates_pem<'a>(chain: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    let blocks = chain
        .into_iter()
        .map(|der| encode(&Pem::new("CERTIFICATE", der.to_vec())));
    blocks.collect()
}

fn key_pem(minted: &Minted) -> String {
    encode(&Pem::new("PRIVATE KEY", minted.key.clone()))
}

async fn next(source: &mut Files) -> Result<Material, String> {
    let next = tokio::time::timeout(Duration::from_secs(20), source.next());
    match next.await.expect("a change within 20 seconds") {
        Ok(Change::Replace(material)) => Ok(material),
        Ok(Change::Withdraw) => panic!("files never withdraw"),
        Err(error) => Err(crate::telemetry::chain(&error)),
    }
}

async fn quiet(source: &mut Files) {
    let quiet = tokio::time::timeout(QUIET * 5, source.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[tokio::test]
async fn a_renewed_pair_replaces_the_old_one_whole() {
    let (scene, first) = Scene::filled();
    let mut source = scene.source_with("bundle.pem", Some(LEDGER));
    let material = next(&mut source).await.unwrap();
    assert_eq!(material.certified().cert, first.chain);
    assert_eq!(
        **material.bundles(),
        [scene.ca.bundle()].into_iter().collect()
    );

    let between = scene.ca.intermediate(|_| {});
    let second = between.mint(&leaf(LEDGER));
    assert_eq!(second.chain.len(), 2);
    scene.put(&second);
    // Whoever looks between the two files finds a pair that does not fit, and says so.
    let material = loop {
        if let Ok(material) = next(&mut source).await {
            break material;
        }
    };
    assert_eq!(material.certified().cert, second.chain);
}

#[tokio::test]
async fn what_does_not_fit_is_told_once_naming_the_file() {
    let (scene, good) = Scene::filled();
    let mut source = scene.source();
    next(&mut source).await.unwrap();
    let whole = certificates_pem(&good.chain);
    let other = scene.ca.mint(&leaf(LEDGER));
    let root = certificates_pem([scene.ca.certificate()]);
    for (name, text, told) in [
        (
            "cert.pem",
            &whole[..whole.len() / 2],
            "cert.pem holds no whole certificate",
        ),
        ("cert.pem", "", "cert.pem holds no whole certificate"),
        ("cert.pem", &root, "cert.pem is not an X.509-SVID"),
        ("key.pem", "", "key.pem holds no whole private key"),
        (
            "key.pem",
            &key_pem(&other),
            "key.pem do not make an identity: the private key does not fit",
        ),
        ("bundle.pem", "", "bundle.pem holds no whole certificate"),
    ] {
        let before = std::fs::read_to_string(scene.path(name)).unwrap();
        scene.write(name, text);
        let error = next(&mut source).await.unwrap_err();
        assert!(error.contains(told), "{name}: {error}");
        scene.write(name, &before);
        quiet(&mut source).await;
    }
}

#[tokio::test]
async fn a_certificate_of_somebody_else_is_refused() {
    let (scene, _) = Scene::filled();
    let mut source = scene.source_with("bundle.pem", Some("spiffe://example.org/checkout"));
    let error = next(&mut source).await.unwrap_err();
    assert!(
        error.contains("cert.pem is that of spiffe://example.org/ledger"),
        "{error}"
    );
}

#[tokio::test]
async fn files_that_appear_late_are_found() {
    let scene = Scene::new();
    let mut source = scene.source();
    for _ in 0..2 {
        let error = next(&mut source).await.unwrap_err();
        assert!(error.starts_with("cannot read"), "{error}");
    }
    let minted = scene.ca.mint(&leaf(LEDGER));
    scene.write("bundle.pem", &certificates_pem([scene.ca.certificate()]));
    scene.put(&minted);
    assert_eq!(
        next(&mut source).await.unwrap().certified().cert,
        minted.chain
    );
}

#[tokio::test]
async fn a_pair_that_has_ended_is_no_identity() {
    let (scene, _) = Scene::filled();
    let settings = Settings::clone(&scene.source().settings);
    let content = Content::read(&settings).unwrap();
    let at = |now| content.material(&settings, None, now);
    let end = at(SystemTime::now()).unwrap().leaf().not_after;
    assert!(at(end - Duration::from_secs(1)).is_ok());
    assert!(matches!(at(end), Err(FilesError::Ended(_, when)) if when == end));

    let mut params = leaf(LEDGER);
    params.not_before = (SystemTime::now() - HOUR).into();
    params.not_after = (SystemTime::now() - HOUR / 2).into();
    scene.put(&scene.ca.mint(&params));
    let mut source = scene.source();
    // Asked again without a change of the file: the clock may have been set.
    for _ in 0..2 {
        let error = next(&mut source).await.unwrap_err();
        assert!(error.contains("cert.pem was valid until"), "{error}");
    }
}

#[tokio::test]
async fn a_directory_of_bundles_names_a_trust_domain_with_each_file() {
    let (scene, _) = Scene::filled();
    let other = Ca::new("other.test");
    std::fs::create_dir(scene.path("bundles")).unwrap();
    scene.write(
        "bundles/example.org.pem",
        &certificates_pem([scene.ca.certificate()]),
    );
    scene.write("bundles/README", "not looked at");
    scene.write("bundles/.hidden.pem", "not looked at");
    let mut source = scene.source_with("bundles", None);
    assert_eq!(next(&mut source).await.unwrap().bundles().iter().count(), 1);

    scene.write(
        "bundles/other.test.pem",
        &certificates_pem([other.certificate()]),
    );
    let material = next(&mut source).await.unwrap();
    let both = [scene.ca.bundle(), other.bundle()].into_iter().collect();
    assert_eq!(**material.bundles(), both);

    scene.write(
        "bundles/Not A Domain.pem",
        &certificates_pem([other.certificate()]),
    );
    let error = next(&mut source).await.unwrap_err();
    assert!(
        error.contains("Not A Domain.pem is not named for a trust domain"),
        "{error}"
    );
    std::fs::remove_file(scene.path("bundles/Not A Domain.pem")).unwrap();
    std::fs::remove_file(scene.path("bundles/example.org.pem")).unwrap();
    let error = next(&mut source).await.unwrap_err();
    assert!(
        error.contains("no trust bundle was received for our own"),
        "{error}"
    );
}

#[tokio::test]
async fn a_key_that_others_may_write_is_refused_and_one_that_they_may_read_is_taken() {
    let (scene, _) = Scene::filled();
    let mut source = scene.source();
    for (mode, taken) in [(0o620, false), (0o602, false), (0o644, true)] {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(scene.path("key.pem"), permissions).unwrap();
        match next(&mut source).await {
            Ok(_) => assert!(taken, "{mode:o}"),
            Err(error) => {
                assert!(!taken, "{mode:o}");
                assert!(
                    error.contains("others may write this private key"),
                    "{error}"
                );
            }
        }
    }
    assert!(source.warned);
}

#[tokio::test]
async fn a_kubernetes_volume_changes_all_files_at_once() {
    let (scene, _) = Scene::filled();
    let volume = scene.path("volume");
    let fill = |name: &str, minted: &Minted| {
        let dir = volume.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("tls.crt"), certificates_pem(&minted.chain)).unwrap();
        std::fs::write(dir.join("tls.key"), key_pem(minted)).unwrap();
    };
    let first = scene.ca.mint(&leaf(LEDGER));
    fill("..1", &first);
    symlink("..1", volume.join("..data")).unwrap();
    for name in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{name}"), volume.join(name)).unwrap();
    }
    let settings = Settings {
        cert: volume.join("tls.crt"),
        key: volume.join("tls.key"),
        bundle: scene.path("bundle.pem"),
    };
    let mut source = Files::new(settings, None);
    assert_eq!(
        next(&mut source).await.unwrap().certified().cert,
        first.chain
    );

    let second = scene.ca.mint(&leaf(LEDGER));
    fill("..2", &second);
    symlink("..2", volume.join("..data_tmp")).unwrap();
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    std::fs::remove_dir_all(volume.join("..1")).unwrap();
    assert_eq!(
        next(&mut source).await.unwrap().certified().cert,
        second.chain
    );
}

#[test]
fn nothing_of_the_key_is_in_a_debug_text() {
    let (scene, _) = Scene::filled();
    let content = Content::read(&scene.source().settings).unwrap();
    assert_eq!(format!("{content:?}"), "Content { .. }");
}
