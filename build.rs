//! Compiles the Workload API's definition, without `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let definition = "src/issuer/workload.proto";
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
