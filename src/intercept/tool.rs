//! How are the programs called that know the kernel's tables?

use std::io::{self, Write};
use std::process::{Command, ExitStatus, Stdio};

/// A program of the system, and the package that has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tool {
    name: &'static str,
    package: &'static str,
}

pub(super) const NFT: Tool = Tool {
    name: "nft",
    package: "nftables, 1.0 or newer",
};
pub(super) const IP: Tool = Tool {
    name: "ip",
    package: "iproute2",
};

impl Tool {
    /// Calls it with `arguments`, tells it `input`, and returns what it says.
    pub(super) fn call(self, arguments: &[&str], input: &str) -> Result<String, ToolError> {
        let Self { name, package } = self;
        let mut child = Command::new(name)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| ToolError::Start {
                name,
                package,
                source,
            })?;
        // It says nothing before it has heard everything; if it stops listening, it says why.
        let told = child
            .stdin
            .take()
            .map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
        let talk = |source| ToolError::Talk { name, source };
        let output = child.wait_with_output().map_err(talk)?;
        if !output.status.success() {
            return Err(ToolError::Refused {
                name,
                arguments: arguments.join(" "),
                status: output.status,
                said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        told.map_err(talk)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Why the kernel's tables are not as they should be, or are not known.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// There is no such program.
    #[error("cannot start `{name}`: install {package}")]
    Start {
        /// Its name.
        name: &'static str,
        /// The package that has it.
        package: &'static str,
        /// What the operating system says.
        source: io::Error,
    },
    /// It does not listen.
    #[error("cannot talk to `{name}`")]
    Talk {
        /// Its name.
        name: &'static str,
        /// What the operating system says.
        source: io::Error,
    },
    /// It will not: without `CAP_NET_ADMIN`, or in an old kernel.
    #[error("`{name} {arguments}` ended with {status}: {said}")]
    Refused {
        /// Its name.
        name: &'static str,
        /// What it was asked.
        arguments: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
}
