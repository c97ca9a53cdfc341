//! What does each policy say of itself, and whom and what does its scope name? For whoever reads policies
//! rather than asks them.

use std::fmt;
use std::sync::Arc;

use cedar_policy::{Effect, Policy};

use super::cedar::{Engine, ROLE, TRUST_DOMAIN, WORKLOAD};
use super::governance::{Grant, Registry};
use super::scope;
use crate::identity::SpiffeId;

/// One policy, as a reader sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// What it says of itself.
    pub grant: Arc<Grant>,
    /// Whether it permits; otherwise it forbids.
    pub permits: bool,
    /// Whether it is a dry run: decided and recorded, not enforced.
    pub dry_run: bool,
    /// Whom its scope names. Its conditions may say more.
    pub principal: Named,
    /// Which service its scope names; none if it is for all.
    pub service: Option<Arc<str>>,
}

/// Whom the scope of a policy names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// Nobody in particular.
    Anyone,
    /// The workload with this SPIFFE ID.
    Workload(Arc<str>),
    /// Those registered with this role.
    Role(Arc<str>),
    /// Those of this trust domain.
    TrustDomain(Arc<str>),
}

impl Named {
    /// Whom the scope of `policy` names.
    pub(super) fn of(policy: &Policy) -> Self {
        let Some(uid) = scope::principal(policy) else {
            return Self::Anyone;
        };
        let (kind, name) = (uid.type_name(), uid.id().unescaped().into());
        match () {
            () if *kind == *WORKLOAD => Self::Workload(name),
            () if *kind == *ROLE => Self::Role(name),
            () if *kind == *TRUST_DOMAIN => Self::TrustDomain(name),
            () => Self::Anyone,
        }
    }

    /// Whether it names `id`, with the roles that `registry` gives it.
    pub(super) fn names(&self, id: &SpiffeId, registry: &Registry) -> bool {
        match self {
            Self::Anyone => true,
            Self::Workload(name) => id.as_str() == &**name,
            Self::TrustDomain(name) => id.trust_domain().as_str() == &**name,
            Self::Role(name) => {
                let roles = registry.get(id).map(|workload| &workload.roles);
                roles.is_some_and(|roles| roles.iter().any(|role| **role == **name))
            }
        }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("anyone"),
            Self::Workload(id) => f.write_str(id),
            Self::Role(role) => write!(f, "role {role}"),
            Self::TrustDomain(domain) => write!(f, "trust domain {domain}"),
        }
    }
}

impl Engine {
    /// Every policy that can apply to anybody, in order.
    #[must_use]
    pub fn listing(&self) -> Vec<Listed> {
        let listed = self.rules().into_iter().map(|rule| Listed {
            grant: rule.grant.clone(),
            permits: rule.policy.effect() == Effect::Permit,
            dry_run: rule.dry_run,
            principal: Named::of(&rule.policy),
            service: scope::service(&rule.policy),
        });
        listed.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Settings, files};

    #[test]
    fn a_listing_names_whom_and_what_each_scope_names() {
        let annotations = |id: &str| {
            format!("@id(\"{id}\") @owner(\"o\") @purpose(\"p\") @expires(\"2099-01-01\") ")
        };
        let scopes = [
            (
                "one",
                "permit (principal == Workload::\"spiffe://example.org/a\", action, resource == Service::\"s\");",
            ),
            (
                "role",
                "@mode(\"observe\") permit (principal in Role::\"readers\", action, resource);",
            ),
            (
                "domain",
                "permit (principal in TrustDomain::\"example.org\", action, resource is Service);",
            ),
            ("all", "permit (principal, action, resource);"),
        ];
        let mut text: String = scopes
            .iter()
            .map(|(id, scope)| annotations(id) + scope + "\n")
            .collect();
        text +=
            "@id(\"never\") forbid (principal is Workload, action, resource in Service::\"s\");";
        let engine = files::check_texts([("a.cedar", &*text)], &Settings::of("")).unwrap();
        let listed: Vec<_> = engine
            .listing()
            .into_iter()
            .map(|listed| {
                let service = listed.service.as_deref().unwrap_or("-").to_owned();
                let how = (listed.permits, listed.dry_run);
                (
                    listed.grant.id.to_string(),
                    listed.principal.to_string(),
                    service,
                    how,
                )
            })
            .collect();
        let expected = [
            ("one", "spiffe://example.org/a", "s", (true, false)),
            ("role", "role readers", "-", (true, true)),
            ("domain", "trust domain example.org", "-", (true, false)),
            ("all", "anyone", "-", (true, false)),
            ("never", "anyone", "s", (false, false)),
        ];
        let expected: Vec<_> = expected
            .map(|(id, who, what, how)| (id.to_owned(), who.to_owned(), what.to_owned(), how))
            .into();
        assert_eq!(listed, expected);
    }
}
