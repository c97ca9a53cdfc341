//! Which system calls are denied?
//!
//! A list of what a proxy never needs, not one of what it does: the C library and its resolver choose their
//! calls anew with each version, and a proxy that is killed or blind in production because of a library's
//! update is worse than one that could ask the kernel for a little more. So what is denied is what an
//! intruder wants next: to start a program or a process, to look into another, to leave namespaces, to load
//! code into the kernel, and those interfaces of the kernel that most of its holes were in. It is answered
//! with EPERM, which every caller knows, and kills nobody.
//!
//! Calls that always pass cost no filter: since Linux 5.11 the kernel finds out once which they are.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use super::Why;

/// Denies them to all threads.
pub(super) fn deny() -> Result<(), Why> {
    for filter in filters().map_err(|error| error.to_string())? {
        seccompiler::apply_filter_all_threads(&filter).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn filters() -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    Ok([
        compile(denied()?, libc::EPERM)?,
        // Its flags are in memory, where no filter sees them; the C library takes `clone` if there is none.
        compile(
            [(libc::SYS_clone3, Vec::new())].into_iter().collect(),
            libc::ENOSYS,
        )?,
    ])
}

type Rules = BTreeMap<libc::c_long, Vec<SeccompRule>>;

fn compile(rules: Rules, errno: i32) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let errno = SeccompAction::Errno(errno.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, errno, arch)?.try_into()
}

fn denied() -> Result<Rules, seccompiler::BackendError> {
    let argument = |index, is, value: i32| {
        // Flags and families of addresses: they fit in 32 bits, and the kernel looks at no more.
        SeccompCondition::new(index, Length::Dword, is, u64::from(value.unsigned_abs()))
    };
    let mut rules: Rules = NEVER.iter().map(|call| (*call, Vec::new())).collect();
    #[cfg(target_arch = "x86_64")]
    rules.extend(x86::NEVER.iter().map(|call| (*call, Vec::new())));
    // Threads may be started, processes not. No thread can be started into other namespaces.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    let no_thread = SeccompCondition::new(0, Length::Dword, Is::MaskedEq(thread), 0)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![no_thread])?]);
    // Netlink is how the C library learns which addresses this machine has.
    let families = [
        libc::AF_UNIX,
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
    ];
    let other = families
        .into_iter()
        .map(|family| argument(0, Is::Ne, family));
    let other = SeccompRule::new(other.collect::<Result<_, _>>()?)?;
    let mut sockets = vec![other];
    // Whoever may connect from foreign addresses could otherwise read and write packets as well.
    for family in [libc::AF_INET, libc::AF_INET6] {
        for raw in RAW {
            let kind = Is::MaskedEq(u64::from(SOCKET_KIND.unsigned_abs()));
            let raw = u64::from(raw.unsigned_abs());
            sockets.push(SeccompRule::new(vec![
                argument(0, Is::Eq, family)?,
                SeccompCondition::new(1, Length::Dword, kind, raw)?,
            ])?);
        }
    }
    rules.insert(libc::SYS_socket, sockets);
    // Who took over could show our memory again.
    let dumpable = argument(0, Is::Eq, libc::PR_SET_DUMPABLE)?;
    rules.insert(libc::SYS_prctl, vec![SeccompRule::new(vec![dumpable])?]);
    #[cfg(target_arch = "x86_64")]
    x86::close_the_side_door(&mut rules);
    Ok(rules)
}

/// What is not a flag in the type of a socket (socket(2)).
const SOCKET_KIND: i32 = 0xf;

/// The types that see more than their own connection. `SOCK_PACKET` makes a socket of `AF_PACKET`, whatever the
/// family that it is asked for with (packet(7)).
const RAW: [i32; 2] = [libc::SOCK_RAW, SOCK_PACKET];

/// As in the kernel's `linux/net.h`; the C library's is deprecated.
const SOCK_PACKET: i32 = 10;

/// Denied whatever the arguments are, on all architectures.
const NEVER: &[libc::c_long] = &[
    // Programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_memfd_create,
    libc::SYS_personality,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Other users.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    // Other namespaces and file systems.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    // Where most of the kernel's holes were, and what gets around a filter.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_vmsplice,
    libc::SYS_fanotify_init,
];

#[cfg(target_arch = "x86_64")]
mod x86 {
    use nix::libc;

    use super::Rules;

    /// Those that other architectures never had.
    pub(super) const NEVER: &[libc::c_long] = &[
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_mknod,
        libc::SYS_kexec_file_load,
        libc::SYS_iopl,
        libc::SYS_ioperm,
        libc::SYS_modify_ldt,
        libc::SYS_uselib,
    ];

    /// Some kernels know every call a second time, under the x32 ABI: by its number with a bit set, or by
    /// one of its own. Nobody here is built for that, so what is denied is denied there whole.
    pub(super) fn close_the_side_door(rules: &mut Rules) {
        let twins: Vec<_> = rules.keys().map(|call| call | X32).collect();
        let own = X32_OWN.iter().map(|call| call | X32);
        rules.extend(twins.into_iter().chain(own).map(|call| (call, Vec::new())));
        rules.insert(libc::SYS_clone3 | X32, Vec::new());
    }

    /// `__X32_SYSCALL_BIT`
    const X32: libc::c_long = 0x4000_0000;

    /// `execve`, `ptrace`, `kexec_load`, `process_vm_readv`, `process_vm_writev`, `vmsplice`, `execveat`, as
    /// the kernel's table of system calls numbers them for x32.
    const X32_OWN: &[libc::c_long] = &[520, 521, 528, 532, 539, 540, 545];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_are_sound_programs_for_the_kernel() {
        for filter in filters().unwrap() {
            // BPF_MAXINSNS
            assert!((1..=4096).contains(&filter.len()), "{}", filter.len());
        }
    }

    #[test]
    fn what_every_request_needs_is_never_denied() {
        let rules = denied().unwrap();
        for call in [
            libc::SYS_accept4,
            libc::SYS_connect,
            libc::SYS_readv,
            libc::SYS_writev,
            libc::SYS_sendto,
            libc::SYS_recvfrom,
            libc::SYS_epoll_wait,
            libc::SYS_futex,
            libc::SYS_mmap,
            libc::SYS_getrandom,
            libc::SYS_renameat,
        ] {
            assert!(!rules.contains_key(&call), "{call}");
        }
        // These only with some arguments.
        for call in [libc::SYS_clone, libc::SYS_socket, libc::SYS_prctl] {
            assert!(!rules[&call].is_empty(), "{call}");
        }
    }
}
