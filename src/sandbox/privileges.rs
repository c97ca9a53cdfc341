//! Rights of root, programs that would give some, and who may look into our memory.

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

use super::{Needs, Why};

/// No program that we could start has more rights than we have.
pub(super) fn renounce() -> Result<(), Why> {
    prctl::set_no_new_privs().map_err(|error| format!("PR_SET_NO_NEW_PRIVS: {error}"))
}

/// Nobody of our own user reads our memory or traces us, and the kernel writes it to no file.
pub(super) fn hide_memory() -> Result<(), Why> {
    prctl::set_dumpable(false).map_err(|error| format!("PR_SET_DUMPABLE: {error}"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|error| format!("RLIMIT_CORE: {error}"))
}

/// Gives up all capabilities but those that `needs` ask for, and says which stay: the one that binds ports below
/// 1024, since each is bound a second time when it begins to listen, and the one that connects from addresses that
/// are not ours.
pub(super) fn drop_capabilities(needs: &Needs) -> Result<Vec<Capability>, Why> {
    let told = |error: caps::errors::CapsError| error.to_string();
    let held = caps::read(None, CapSet::Permitted).map_err(told)?;
    // The bounding set takes a capability to shrink. Without that it does not matter: it bounds what a new
    // program would gain, and a new program gains nothing.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(told)? {
        caps::clear(None, CapSet::Bounding).map_err(told)?;
    }
    caps::clear(None, CapSet::Ambient).map_err(told)?;
    let binds = needs.bind.iter().any(|port| (1..1024).contains(port));
    let mut stay = Vec::new();
    for (capability, is_needed) in [
        (Capability::CAP_NET_BIND_SERVICE, binds),
        (FOREIGN_ADDRESSES, needs.foreign_addresses),
    ] {
        if is_needed && held.contains(&capability) {
            stay.push(capability);
        }
    }
    let kept: CapsHashSet = stay.iter().copied().collect();
    for (set, kept) in [
        (CapSet::Inheritable, CapsHashSet::new()),
        (CapSet::Effective, kept.clone()),
        (CapSet::Permitted, kept),
    ] {
        // Whoever runs us without any may well have denied the call too.
        if caps::read(None, set).map_err(told)? != kept {
            caps::set(None, set, &kept).map_err(told)?;
        }
    }
    Ok(stay)
}

/// Whether we may connect from addresses that are not ours, now.
pub(super) fn may_use_foreign_addresses() -> bool {
    caps::has_cap(None, CapSet::Effective, FOREIGN_ADDRESSES).unwrap_or(false)
}

/// What `IP_TRANSPARENT` takes (ip(7)).
const FOREIGN_ADDRESSES: Capability = Capability::CAP_NET_RAW;
