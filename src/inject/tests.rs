//! What a pod gets, and what it keeps.

use serde_json::json;

use super::*;

const NO_OWNER: Owner<'_> = Owner { name: None };

fn plain(annotations: Value) -> Value {
    json!({
        "metadata": { "annotations": annotations, "labels": { "app": "invoices" } },
        "spec": {
            "serviceAccountName": "invoices",
            "containers": [{ "name": "app", "image": "app:1", "ports": [{ "containerPort": 8080 }] }],
        },
    })
}

fn without_interception() -> Settings {
    Settings {
        intercept: false,
        policy: Some("policy".into()),
        ..Settings::default()
    }
}

#[test]
fn injecting_twice_changes_nothing_and_undoing_gives_the_original_back() {
    let original = plain(json!({ "doorward.dev/port": "8080" }));
    let settings = without_interception();
    let mut once = original.clone();
    let outcome = pod(&settings, NO_OWNER, &mut once).unwrap();
    let notes = vec![OPEN.to_owned()];
    assert_eq!(outcome, Outcome::Injected { notes });
    let mut twice = once.clone();
    pod(&settings, NO_OWNER, &mut twice).unwrap();
    assert_eq!(twice, once);
    assert!(undo::undo(&mut twice));
    assert_eq!(twice, original);
}

#[test]
fn what_others_changed_of_our_containers_stays_until_we_would_change_it_ourselves() {
    let settings = Settings {
        intercept: true,
        ..without_interception()
    };
    let original = plain(json!({ "doorward.dev/port": "8080" }));
    let mut it = original.clone();
    pod(&settings, NO_OWNER, &mut it).unwrap();
    for ours in list_mut(&mut it, INIT_CONTAINERS).unwrap() {
        let image = ours["image"].as_str().unwrap();
        ours["image"] = format!("mirror.example.org/{image}").into();
        ours["resources"]["limits"]["memory"] = "256Mi".into();
    }
    let rewritten = it.clone();
    // What keeps a sidecar safe is ours to say.
    it["spec"]["initContainers"][1]["securityContext"]["privileged"] = true.into();
    for _ in 0..2 {
        pod(&settings, NO_OWNER, &mut it).unwrap();
        assert_eq!(it, rewritten);
    }

    let newer = Settings {
        image: "doorward:newer".into(),
        ..settings
    };
    pod(&newer, NO_OWNER, &mut it).unwrap();
    for ours in containers(&it, INIT_CONTAINERS) {
        assert_eq!(ours["image"], "doorward:newer");
        assert_eq!(ours["resources"]["limits"]["memory"], "256Mi");
    }
    undo::undo(&mut it);
    assert_eq!(it, original);
}

#[test]
fn pods_that_cannot_have_a_sidecar_or_need_none_are_left_as_they_are() {
    let asks = json!({ "doorward.dev/port": "8080" });
    for (change, reason) in [
        (
            (
                "/metadata/annotations",
                json!({ "doorward.dev/inject": "disabled" }),
            ),
            Reason::Disabled,
        ),
        (
            (
                "/metadata/labels",
                json!({ "doorward.dev/inject": "disabled" }),
            ),
            Reason::Disabled,
        ),
        (("/metadata/annotations", json!({})), Reason::NothingToDo),
        (
            (
                "/metadata/annotations",
                json!({ "kubernetes.io/config.mirror": "x" }),
            ),
            Reason::Mirror,
        ),
        (("/spec/hostNetwork", json!(true)), Reason::HostNetwork),
        (("/spec/os", json!({ "name": "windows" })), Reason::Windows),
        (
            (
                "/spec/nodeSelector",
                json!({ "kubernetes.io/os": "windows" }),
            ),
            Reason::Windows,
        ),
        (
            ("/spec/initContainers", json!([{ "name": "doorward" }])),
            Reason::HasSidecar,
        ),
        (
            ("/spec/volumes", json!([{ "name": "doorward-policy" }])),
            Reason::HasSidecar,
        ),
    ] {
        let mut it = plain(asks.clone());
        let (path, value) = change;
        let (parent, key) = path.rsplit_once('/').unwrap();
        it.pointer_mut(parent).unwrap()[key] = value;
        let before = it.clone();
        let outcome = pod(&without_interception(), NO_OWNER, &mut it).unwrap();
        assert_eq!(outcome, Outcome::LeftAlone(reason), "{path}");
        assert_eq!(it, before, "{path}");
    }
}

#[test]
fn a_pod_that_no_longer_wants_a_sidecar_is_as_it_was() {
    let mut it = plain(json!({ "doorward.dev/port": "8080" }));
    pod(&without_interception(), NO_OWNER, &mut it).unwrap();
    it["metadata"]["annotations"]["doorward.dev/inject"] = json!("disabled");
    let outcome = pod(&without_interception(), NO_OWNER, &mut it).unwrap();
    assert_eq!(outcome, Outcome::LeftAlone(Reason::Disabled));
    assert_eq!(
        it,
        plain(json!({ "doorward.dev/port": "8080", "doorward.dev/inject": "disabled" }))
    );
}

#[test]
fn a_probe_that_was_written_anew_after_an_injection_counts() {
    let settings = Settings {
        intercept: true,
        ..without_interception()
    };
    let mut it = plain(json!({ "doorward.dev/port": "8080" }));
    let probe = |path: &str| json!({ "httpGet": { "path": path, "port": 8080 } });
    it["spec"]["containers"][0]["livenessProbe"] = probe("/old");
    pod(&settings, NO_OWNER, &mut it).unwrap();
    it["spec"]["containers"][0]["livenessProbe"] = probe("/new");
    pod(&settings, NO_OWNER, &mut it).unwrap();
    let config = it["metadata"]["annotations"]["doorward.dev/doorward.yaml"].as_str();
    assert!(config.unwrap().contains("target: /new"), "{config:?}");
    undo::undo(&mut it);
    assert_eq!(it["spec"]["containers"][0]["livenessProbe"], probe("/new"));
}

#[test]
fn whoever_runs_a_pod_is_told_what_weakens_its_sidecar() {
    for (path, value, note) in [
        (
            "/spec/serviceAccountName",
            json!("default"),
            "service account `default`",
        ),
        (
            "/spec/containers/0/securityContext",
            json!({ "privileged": true }),
            "may change the packet filter's rules",
        ),
        (
            "/spec/containers/0/securityContext",
            json!({ "capabilities": { "add": ["NET_ADMIN"] } }),
            "may change the packet filter's rules",
        ),
        (
            "/spec/containers/0/securityContext",
            json!({ "capabilities": { "add": ["cap_net_admin"] } }),
            "may change the packet filter's rules",
        ),
        (
            "/spec/containers/0/livenessProbe",
            json!({ "httpGet": { "port": 8080, "scheme": "HTTPS" } }),
            "asks by HTTPS",
        ),
        (
            "/spec/containers/0/lifecycle",
            json!({ "preStop": { "httpGet": { "port": 8080 } } }),
            "write it with `exec`",
        ),
    ] {
        let mut it = plain(json!({ "doorward.dev/port": "8080" }));
        let (parent, key) = path.rsplit_once('/').unwrap();
        it.pointer_mut(parent).unwrap()[key] = value;
        let settings = Settings {
            intercept: true,
            ..without_interception()
        };
        let Outcome::Injected { notes } = pod(&settings, NO_OWNER, &mut it).unwrap() else {
            panic!("{path}: it was left alone");
        };
        assert!(
            notes.len() == 1 && notes[0].contains(note),
            "{path}: {notes:?}"
        );
    }
}

#[test]
fn whose_port_stays_open_is_told_and_nobody_else() {
    let outbound = json!({ "doorward.dev/outbound": "[{ listen: '127.0.0.1:1', to: 'a:1', peer: 'spiffe://a/b' }]" });
    for (annotations, intercept, told) in [
        (json!({ "doorward.dev/port": "8080" }), false, true),
        (json!({ "doorward.dev/port": "8080" }), true, false),
        (outbound, false, false),
    ] {
        let settings = Settings {
            intercept,
            ..without_interception()
        };
        let mut it = plain(annotations.clone());
        let Outcome::Injected { notes } = pod(&settings, NO_OWNER, &mut it).unwrap() else {
            panic!("{annotations}: it was left alone");
        };
        assert_eq!(notes.contains(&OPEN.to_owned()), told, "{annotations}");
    }
}

#[test]
fn jobs_and_pods_that_serve_nothing_stop_at_once() {
    for (annotations, policy, late) in [
        (json!({ "doorward.dev/port": "8080" }), "Always", true),
        (json!({ "doorward.dev/port": "8080" }), "OnFailure", false),
        (
            json!({ "doorward.dev/port": "8080", "doorward.dev/stop-delay": "0s" }),
            "Always",
            false,
        ),
        (
            json!({ "doorward.dev/outbound": "[{ listen: '127.0.0.1:1', to: 'a:1', peer: 'spiffe://a/b' }]" }),
            "Always",
            false,
        ),
    ] {
        let mut it = plain(annotations.clone());
        it["spec"]["restartPolicy"] = policy.into();
        pod(&without_interception(), NO_OWNER, &mut it).unwrap();
        let hook = &it["spec"]["containers"][0]["lifecycle"]["preStop"];
        assert_eq!(
            *hook == json!({ "sleep": { "seconds": 5 } }),
            late,
            "{annotations} {policy}"
        );
        assert_eq!(
            it["spec"]["terminationGracePeriodSeconds"] == json!(35),
            late,
            "{annotations}"
        );
    }
}

#[test]
fn a_short_annotation_does_not_stand_for_a_long_list() {
    let mut list = String::from("- &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..5 {
        let before = format!("*a{}, ", level - 1).repeat(10);
        list += &format!("- &a{level} [{before}]\n");
    }
    let mut it = plain(json!({ "doorward.dev/outbound": list }));
    let told = pod(&without_interception(), NO_OWNER, &mut it).unwrap_err();
    assert!(
        told.to_string().contains("more than 10000 values"),
        "{told}"
    );
}

#[test]
fn annotations_that_kubernetes_would_not_take_are_not_read() {
    for (name, text) in [
        ("exclude-outbound-ports", vec!["1"; 200_000].join(",")),
        (&"x".repeat(300_000), String::new()),
    ] {
        let mut it = plain(json!({ "doorward.dev/port": "8080" }));
        it["metadata"]["annotations"][format!("{PREFIX}{name}")] = text.into();
        let told = pod(&without_interception(), NO_OWNER, &mut it).unwrap_err();
        assert!(told.to_string().contains("more than 256 KiB"), "{told}");
    }
}

#[test]
fn what_the_sidecar_is_told_is_what_check_accepts() {
    let outbound = "[{ listen: '127.0.0.1:1', to: 'a:1', peer: 'spiffe://a/b' }]";
    for annotations in [
        json!({ "doorward.dev/port": "8080" }),
        json!({ "doorward.dev/port": "8080=a, 9090=b", "doorward.dev/protocol": "tcp" }),
        json!({ "doorward.dev/port": "8080", "doorward.dev/exclude-inbound-ports": "22, 9000-9010" }),
        json!({ "doorward.dev/inbound": "[{ intercept: [8080, 9000-9010], service: a }, { listen: '0.0.0.0:8443', service: b, app: '127.0.0.1:1' }]" }),
        json!({
            "doorward.dev/outbound": "[{ intercept: ['ledger.bank.svc:8443', '10.0.0.0/8:5432'], peer: 'spiffe://a/b' }]",
            "doorward.dev/outbound-otherwise": "passthrough",
            "doorward.dev/exclude-outbound-ports": "22, 9000-9010",
            "doorward.dev/exclude-outbound-addresses": "169.254.169.254, 10.1.0.0/16",
        }),
        json!({ "doorward.dev/outbound": outbound }),
        json!({ "doorward.dev/outbound": outbound, "doorward.dev/identity": "cert-manager" }),
        json!({ "doorward.dev/outbound": outbound, "doorward.dev/identity": "unix:///run/a/b.sock", "doorward.dev/spiffe-id": "spiffe://a/b" }),
    ] {
        let settings = Settings {
            intercept: true,
            ..without_interception()
        };
        let mut it = plain(annotations.clone());
        pod(&settings, NO_OWNER, &mut it).unwrap();
        let config = it["metadata"]["annotations"]["doorward.dev/doorward.yaml"].as_str();
        let read = Document::new("doorward.yaml", config.unwrap())
            .read(Config::read)
            .unwrap();
        let is_intercepted = annotations.to_string().contains("intercept")
            || annotations.get("doorward.dev/port").is_some();
        assert_eq!(read.intercept.is_some(), is_intercepted, "{annotations}");
        assert_eq!(
            it["spec"]["initContainers"][0]["name"] == json!(INTERCEPTOR),
            is_intercepted,
            "{annotations}"
        );
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    /// Fields that nobody here knows.
    fn unknown() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(json!({})),
            Just(json!({ "future": [1, { "deep": null }], "other": "on" })),
        ]
    }

    fn probe() -> impl Strategy<Value = Option<Value>> {
        prop_oneof![
            Just(None),
            Just(Some(
                json!({ "exec": { "command": ["true"] }, "periodSeconds": 3 })
            )),
            Just(Some(
                json!({ "httpGet": { "path": "/a?b=c", "port": "web" }, "timeoutSeconds": 2 })
            )),
            Just(Some(
                json!({ "periodSeconds": 3, "httpGet": { "port": 9000, "scheme": "HTTPS" } })
            )),
            Just(Some(
                json!({ "httpGet": { "port": 9000, "host": "elsewhere.example" } })
            )),
            Just(Some(json!({ "httpGet": { "port": "nowhere" } }))),
            Just(Some(
                json!({ "tcpSocket": { "port": 9000 }, "terminationGracePeriodSeconds": 9 })
            )),
            Just(Some(
                json!({ "grpc": { "port": 9000 }, "failureThreshold": 1 })
            )),
        ]
    }

    fn lifecycle() -> impl Strategy<Value = Option<Value>> {
        prop_oneof![
            Just(None),
            Just(Some(json!({ "preStop": { "sleep": { "seconds": 1 } } }))),
            Just(Some(
                json!({ "postStart": { "exec": { "command": ["true"] } } })
            )),
        ]
    }

    fn container(name: &'static str) -> impl Strategy<Value = Value> {
        let probes = (probe(), probe(), probe());
        (probes, lifecycle(), unknown()).prop_map(move |((live, ready, start), lifecycle, rest)| {
            let mut it = json!({ "name": name, "image": "x", "ports": [{ "name": "web", "containerPort": 8080 }] });
            for (key, value) in [
                ("livenessProbe", live),
                ("readinessProbe", ready),
                ("startupProbe", start),
                ("lifecycle", lifecycle),
                ("rest", Some(rest)),
            ] {
                if let Some(value) = value {
                    it[key] = value;
                }
            }
            it
        })
    }

    fn any_pod() -> impl Strategy<Value = Value> {
        let containers = (
            container("app"),
            prop::option::of(container("second")),
            prop::option::of(container("init")),
        );
        let spec = (
            any::<bool>(),
            any::<bool>(),
            prop::option::of(0_u64..100),
            unknown(),
        );
        (containers, spec, prop::option::of(unknown())).prop_map(
            |((app, second, init), (volumes, job, grace, rest), labels)| {
                let mut containers = vec![app];
                containers.extend(second);
                let mut it = json!({
                    "metadata": { "annotations": { "doorward.dev/port": "8080", "doorward.dev/service": "a" } },
                    "spec": { "containers": containers, "rest": rest },
                });
                if let Some(labels) = labels {
                    it["metadata"]["labels"] = labels;
                }
                if let Some(init) = init {
                    it["spec"]["initContainers"] = json!([init]);
                }
                if volumes {
                    it["spec"]["volumes"] = json!([{ "name": "scratch", "emptyDir": {} }]);
                }
                if job {
                    it["spec"]["restartPolicy"] = "Never".into();
                }
                if let Some(grace) = grace {
                    it["spec"]["terminationGracePeriodSeconds"] = grace.into();
                }
                it
            },
        )
    }

    /// Whether all that is in `before` is in `after`, but for what injections replace.
    fn keeps(before: &Value, after: &Value) -> bool {
        match (before, after) {
            (Value::Object(before), Value::Object(after)) => before.iter().all(|(key, value)| {
                ["httpGet", "tcpSocket", "grpc", sidecar::GRACE].contains(&key.as_str())
                    || after.get(key).is_some_and(|after| keeps(value, after))
            }),
            (Value::Array(before), Value::Array(after)) => {
                let mut after = after.iter();
                before
                    .iter()
                    .all(|item| after.any(|after| keeps(item, after)))
            }
            (before, after) => before == after,
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_doing_it_again_or_undoing_it_is_as_it_should_be(
            original in any_pod(),
            intercept in any::<bool>(),
        ) {
            let settings = Settings { intercept, ..without_interception() };
            let other = Settings {
                intercept: !intercept,
                identity: Identity::CertManager,
                stop_delay: std::time::Duration::from_secs(7),
                image: "other:1".into(),
                ..without_interception()
            };
            let mut once = original.clone();
            pod(&settings, NO_OWNER, &mut once).unwrap();
            prop_assert!(keeps(&original, &once), "{original:#}\n{once:#}");

            let mut twice = once.clone();
            pod(&settings, NO_OWNER, &mut twice).unwrap();
            prop_assert_eq!(twice.to_string(), once.to_string());

            let mut changed = once.clone();
            pod(&other, NO_OWNER, &mut changed).unwrap();
            let mut fresh = original.clone();
            pod(&other, NO_OWNER, &mut fresh).unwrap();
            prop_assert_eq!(&changed, &fresh);

            prop_assert!(undo::undo(&mut once));
            prop_assert_eq!(once, original);
        }
    }
}
