//! What does the API server ask, and how is it told? `AdmissionReview` of `admission.k8s.io/v1`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use json_patch::Patch;
use serde::Deserialize;
use serde_json::{Value, json};

/// What is asked about one object.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Review {
    /// The name of the question: the answer repeats it.
    pub(super) uid: String,
    kind: Kind,
    /// Empty for the object itself.
    #[serde(default)]
    sub_resource: String,
    operation: String,
    /// Where the object will be; its own metadata need not say so yet.
    #[serde(default)]
    pub(super) namespace: String,
    /// Nothing will come of it: the caller wants to know what would.
    #[serde(default)]
    dry_run: Option<bool>,
    /// The object as it came.
    #[serde(default)]
    pub(super) object: Value,
}

#[derive(Debug, Deserialize)]
struct Kind {
    #[serde(default)]
    group: String,
    version: String,
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    api_version: String,
    kind: String,
    request: Option<Review>,
}

/// Far more than any pod has. What is read takes up to a hundred times as much memory as its text, where that is
/// little but brackets.
const MOST_VALUES: usize = 100_000;

/// As many values as JSON may hold by its look, or more: before each stands one of these, or the beginning.
fn at_most_values(text: &[u8]) -> usize {
    let (mut quoted, mut escaped) = (false, false);
    let marks = text.iter().filter(|byte| {
        let is_mark = !quoted && matches!(byte, b'[' | b',' | b':');
        if !escaped && **byte == b'"' {
            quoted = !quoted;
        }
        escaped = quoted && !escaped && **byte == b'\\';
        is_mark
    });
    1 + marks.count()
}

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

impl Review {
    /// Reads what the API server sent.
    ///
    /// # Errors
    /// [`Malformed`] says what it is not.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Malformed> {
        if at_most_values(text) > MOST_VALUES {
            return Err(Malformed::Values);
        }
        let envelope: Envelope = serde_json::from_slice(text).map_err(Malformed::Json)?;
        if (envelope.api_version.as_str(), envelope.kind.as_str()) != (API_VERSION, KIND) {
            return Err(Malformed::Kind(envelope.api_version, envelope.kind));
        }
        let review = envelope.request.ok_or(Malformed::NoRequest)?;
        if review.uid.is_empty() {
            return Err(Malformed::NoUid);
        }
        Ok(review)
    }

    /// Whether it is about a pod that is about to come to be: nothing else is ever changed.
    pub(super) fn is_new_pod(&self) -> bool {
        let Kind {
            group,
            version,
            kind,
        } = &self.kind;
        (group.as_str(), version.as_str(), kind.as_str()) == ("", "v1", "Pod")
            && self.sub_resource.is_empty()
            && self.operation == "CREATE"
    }

    /// Whether nothing will come of it.
    pub(super) fn is_dry_run(&self) -> bool {
        self.dry_run.unwrap_or_default()
    }

    /// What the object is called: a pod of a controller has a prefix of a name yet.
    pub(super) fn name(&self) -> &str {
        let metadata = &self.object["metadata"];
        let name = metadata["name"].as_str().filter(|name| !name.is_empty());
        name.or_else(|| metadata["generateName"].as_str())
            .unwrap_or_default()
    }

    /// What is said to be asked about, for whoever reads our log.
    pub(super) fn what(&self) -> String {
        let slash = if self.sub_resource.is_empty() {
            ""
        } else {
            "/"
        };
        format!(
            "{} {}{slash}{}",
            self.operation, self.kind.kind, self.sub_resource
        )
    }

    /// The answer, in JSON. Whoever made the object is shown `warnings`.
    pub(super) fn answer(&self, verdict: &Verdict, warnings: &[String]) -> Vec<u8> {
        let mut response = json!({
            "uid": self.uid,
            "allowed": !matches!(verdict, Verdict::Refused(_)),
            "auditAnnotations": { "injection": verdict.label() },
        });
        match verdict {
            Verdict::Injected(patch) | Verdict::LeftAlone(_, patch) if !patch.is_empty() => {
                response["patchType"] = "JSONPatch".into();
                response["patch"] = STANDARD.encode(patch.to_string()).into();
            }
            Verdict::Injected(_) | Verdict::LeftAlone(..) => {}
            Verdict::Refused(why) => {
                response["status"] = json!({
                    "status": "Failure",
                    "code": 403,
                    "reason": "Forbidden",
                    "message": why,
                });
            }
        }
        if !warnings.is_empty() {
            response["warnings"] = warnings.into();
        }
        let review = json!({ "apiVersion": API_VERSION, "kind": KIND, "response": response });
        review.to_string().into_bytes()
    }
}

/// What becomes of an object.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    /// This makes it what it is with a sidecar; nothing need be done if it has one as it should be.
    Injected(Patch),
    /// It has no sidecar, and why; this takes away what is left of an earlier one.
    LeftAlone(String, Patch),
    /// It does not come to be, and why not.
    Refused(String),
}

impl Verdict {
    pub(super) const INJECTED: &'static str = "injected";
    pub(super) const LEFT_ALONE: &'static str = "left_alone";
    pub(super) const REFUSED: &'static str = "refused";

    /// Its word. Part of the public metrics surface: never rename one.
    pub(super) const fn label(&self) -> &'static str {
        match self {
            Self::Injected(_) => Self::INJECTED,
            Self::LeftAlone(..) => Self::LEFT_ALONE,
            Self::Refused(_) => Self::REFUSED,
        }
    }
}

/// Why what came is no question.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    /// Not JSON, or without what every review has.
    #[error("this is no AdmissionReview: {0}")]
    Json(serde_json::Error),
    /// It would take more memory than there is.
    #[error("this has more than {MOST_VALUES} values, and no pod has")]
    Values,
    /// Of another version, or something else.
    #[error("this is {1} of {0}, and what is answered here is AdmissionReview of {API_VERSION}")]
    Kind(String, String),
    /// It may be an answer.
    #[error("this AdmissionReview asks nothing: it has no `request`")]
    NoRequest,
    /// Nobody would know which question was answered.
    #[error("this AdmissionReview has an empty `request.uid`")]
    NoUid,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(request: &Value) -> Vec<u8> {
        json!({ "apiVersion": API_VERSION, "kind": KIND, "request": request })
            .to_string()
            .into_bytes()
    }

    fn request() -> Value {
        json!({
            "uid": "705ab4f5",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "namespace": "bank",
            "operation": "CREATE",
            "userInfo": { "username": "system:serviceaccount:kube-system:replicaset-controller" },
            "object": { "metadata": { "generateName": "ledger-" } },
            "oldObject": null,
            "dryRun": false,
            "options": { "kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1" },
        })
    }

    fn changed(pointer: &str, value: impl Into<Value>) -> Review {
        let mut request = request();
        *request.pointer_mut(pointer).unwrap() = value.into();
        Review::parse(&envelope(&request)).unwrap()
    }

    #[test]
    fn what_is_asked_is_read_with_the_name_that_there_is() {
        let review = Review::parse(&envelope(&request())).unwrap();
        assert_eq!(
            (review.uid.as_str(), review.namespace.as_str()),
            ("705ab4f5", "bank")
        );
        assert_eq!(review.name(), "ledger-");
        assert!(review.is_new_pod() && !review.is_dry_run());
        assert!(changed("/dryRun", true).is_dry_run());
        let named = changed(
            "/object/metadata",
            json!({ "name": "a", "generateName": "b" }),
        );
        assert_eq!(named.name(), "a");
        assert_eq!(changed("/object", Value::Null).name(), "");
    }

    #[test]
    fn values_are_counted_before_they_are_read() {
        for (text, count) in [
            (r#"{}"#, 1),
            (r#"[1, [true], {"a": null}]"#, 6),
            (r#"["a,b:[c\",d\\", "e"]"#, 3),
        ] {
            assert_eq!(at_most_values(text.as_bytes()), count, "{text}");
        }
        let long = changed("/object", ",\"[:\\".repeat(100_000));
        assert!(long.object.is_string());
    }

    #[test]
    fn only_the_creation_of_a_pod_itself_is_one() {
        for (pointer, value) in [
            ("/operation", "UPDATE"),
            ("/operation", "DELETE"),
            ("/kind/kind", "Deployment"),
            ("/kind/group", "apps"),
            ("/kind/version", "v2"),
        ] {
            assert!(!changed(pointer, value).is_new_pod(), "{pointer} {value}");
        }
        let mut request = request();
        request["subResource"] = "ephemeralcontainers".into();
        let review = Review::parse(&envelope(&request)).unwrap();
        assert!(!review.is_new_pod());
        assert_eq!(review.what(), "CREATE Pod/ephemeralcontainers");
    }

    #[test]
    fn what_is_no_question_is_told_so() {
        let mut nameless = request();
        nameless["uid"] = "".into();
        for (text, told) in [
            (b"{".to_vec(), "this is no AdmissionReview: EOF"),
            (b"[]".to_vec(), "this is no AdmissionReview: invalid"),
            (
                b"\xff".to_vec(),
                "this is no AdmissionReview: expected value",
            ),
            (
                br#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview"}"#.to_vec(),
                "this is AdmissionReview of admission.k8s.io/v1beta1",
            ),
            (
                br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{}}"#
                    .to_vec(),
                "this AdmissionReview asks nothing",
            ),
            (
                envelope(&json!({ "uid": "a" })),
                "this is no AdmissionReview: missing field `kind`",
            ),
            (envelope(&nameless), "this AdmissionReview has an empty"),
            (
                [b"[".repeat(50_000), b"]".repeat(50_000)].concat(),
                "this is no AdmissionReview: ",
            ),
            (
                [b"[[]", b",[]".repeat(50_000).as_slice(), b"]"].concat(),
                "this has more than 100000 values",
            ),
        ] {
            let error = Review::parse(&text).unwrap_err().to_string();
            assert!(error.starts_with(told), "{error}");
        }
    }

    #[test]
    fn each_verdict_is_answered_as_the_api_server_reads_it() {
        let review = Review::parse(&envelope(&request())).unwrap();
        let answer = |verdict, warnings: &[&str]| -> Value {
            let warnings: Vec<_> = warnings.iter().map(|text| (*text).to_owned()).collect();
            let answer = review.answer(&verdict, &warnings);
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            assert_eq!(
                (&answer["apiVersion"], &answer["kind"]),
                (&json!(API_VERSION), &json!(KIND))
            );
            assert_eq!(answer["response"]["uid"], "705ab4f5");
            answer["response"].clone()
        };
        let steps = json!([{ "op": "remove", "path": "/spec" }]);
        let patch: Patch = serde_json::from_value(steps).unwrap();
        let injected = answer(Verdict::Injected(patch.clone()), &["look"]);
        assert_eq!(injected["allowed"], true);
        assert_eq!(injected["patchType"], "JSONPatch");
        let text = STANDARD
            .decode(injected["patch"].as_str().unwrap())
            .unwrap();
        assert_eq!(serde_json::from_slice::<Patch>(&text).unwrap(), patch);
        assert_eq!(injected["warnings"], json!(["look"]));
        assert_eq!(
            injected["auditAnnotations"],
            json!({ "injection": "injected" })
        );
        for verdict in [
            Verdict::LeftAlone("why".into(), Patch::default()),
            Verdict::Injected(Patch::default()),
        ] {
            let same = answer(verdict, &[]);
            assert_eq!(same["allowed"], true);
            assert!(same.get("patch").is_none() && same.get("warnings").is_none());
        }
        let refused = answer(Verdict::Refused("not here".into()), &[]);
        assert_eq!(refused["allowed"], false);
        assert_eq!(refused["status"]["message"], "not here");
        assert_eq!(refused["status"]["code"], 403);
    }
}
