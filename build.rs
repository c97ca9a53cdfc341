//! Compiles the Workload API's definition, without `protoc`, and says in which order the linker puts what runs.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    compile("src/issuer/workload.proto")?;
    let platform = [
        "PROFILE",
        "CARGO_CFG_TARGET_ARCH",
        "CARGO_CFG_TARGET_OS",
        "CARGO_CFG_TARGET_ENV",
    ];
    println!("cargo:rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    println!("cargo:rerun-if-changed=src/order");
    if platform.map(said) == ["release", "x86_64", "linux", "gnu"] {
        order()?;
        if said("CARGO_CFG_TARGET_FEATURE").contains("crt-static") && relocates_in_short() {
            link_with("-Wl,-z,pack-relative-relocs");
        }
    }
    Ok(())
}

fn said(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

fn link_with(option: &str) {
    println!("cargo:rustc-link-arg-bin=doorward={option}");
}

fn compile(definition: &str) -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={definition}");
    let descriptors = protox::compile([definition], ["src/issuer"])?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .emit_rerun_if_changed(false)
        // They hold private keys.
        .skip_debug(["X509SVID", "X509SVIDResponse"])
        .message_attribute(
            "X509SVID",
            "#[derive(zeroize::Zeroize, zeroize::ZeroizeOnDrop)]",
        )
        .compile_fds(descriptors)?;
    Ok(())
}

/// Puts the functions that run beside each other, first those that do until we are at rest: `benches/order/run` lists
/// them, for a build with a profile by themselves. The kernel maps 64 KiB around each page of the binary that is
/// touched, so of what runs, a quarter of the code, nearly all would be mapped unless it lay together. Whom the linker
/// does not find stays where it would be.
fn order() -> Result<(), Box<dyn Error>> {
    let profile = said("CARGO_ENCODED_RUSTFLAGS").contains("profile-use");
    let list = if profile { "profile" } else { "plain" };
    let mut script = String::from("SECTIONS { .text.order : ALIGN(65536) {\n");
    for group in fs::read_to_string(format!("src/order/{list}.txt"))?.split("\n\n") {
        script.push_str("*(\n");
        for name in group.split_whitespace() {
            // What seldom runs of a function with a profile is a piece of its own.
            match name.strip_suffix(".cold") {
                Some(name) => writeln!(script, ".text.split.{name}")?,
                None => writeln!(
                    script,
                    ".text.{name} .text.hot.{name} .text.unlikely.{name}"
                )?,
            }
        }
        script.push_str(")\n");
    }
    for file in ASSEMBLY {
        writeln!(script, "*{file}.o(.text)")?;
    }
    script.push_str("} } INSERT BEFORE .text;\n");
    let path = Path::new(&env::var("OUT_DIR")?).join("order.ld");
    fs::write(&path, script)?;
    link_with(&format!("-T{}", path.display()));
    Ok(())
}

/// aws-lc's assembly for handshakes and records: its functions have no sections of their own.
const ASSEMBLY: [&str; 11] = [
    "aesni*-x86_64",
    "bignum_montinv_p256",
    "curve25519_x25519*",
    "ghash-x86_64",
    "mlkem_*_avx2_asm",
    "p256*-x86_64-asm",
    "rdrand-x86_64",
    "sha256-x86_64",
    "sha3_keccak*_f1600*",
    "sha512-x86_64",
    "x86_64-mont",
];

/// Whether the C library that becomes a part of the binary can read relocations that take a tenth of the room: since
/// glibc 2.36. An older one would not start.
fn relocates_in_short() -> bool {
    let version = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let minor = version.ok().and_then(|version| {
        let minor = version.trim().strip_prefix("glibc 2.")?;
        minor.split('.').next()?.parse().ok()
    });
    said("HOST") == said("TARGET") && minor.is_some_and(|minor: u32| minor >= 36)
}
