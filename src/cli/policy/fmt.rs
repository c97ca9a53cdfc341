//! `doorward policy fmt`: policies laid out as everybody lays them out.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use crate::cli::{TROUBLE, show};
use crate::policy::format::formatted;

/// Lay out policies. Exits with 0, or with 1 if --check finds some that are not laid out so, 2 after a
/// mistake.
///
/// Files with a mistake are left as they are.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Change nothing, and name the files that would be changed.
    #[arg(long)]
    check: bool,
    /// Files, directories with `*.cedar`, or `-` for standard input, which is written to standard output.
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
}

/// Formats what is named.
///
/// # Errors
/// If a file cannot be read or written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (mut differs, mut mistaken) = (false, false);
    for path in files(&args.paths)? {
        let stdin = path == Path::new("-");
        let name = match stdin {
            true => "standard input".to_owned(),
            false => path.display().to_string(),
        };
        let text = match stdin {
            true => io::read_to_string(io::stdin()),
            false => fs::read_to_string(&path),
        };
        let text = text.with_context(|| format!("cannot read {name}"))?;
        let new = match formatted(&name, &text) {
            Ok(new) => new,
            Err(error) => {
                show(error.diagnostics());
                mistaken = true;
                continue;
            }
        };
        if args.check {
            if new != text {
                println!("{name}");
                differs = true;
            }
        } else if stdin {
            io::stdout().write_all(new.as_bytes())?;
        } else if new != text {
            replace(&path, &new).with_context(|| format!("cannot write {name}"))?;
        }
    }
    Ok(match (mistaken, differs) {
        (true, _) => ExitCode::from(TROUBLE),
        (false, differs) => ExitCode::from(u8::from(differs)),
    })
}

/// The files that `paths` name, with those in directories.
fn files(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let unread = || format!("cannot read {}", path.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(path).with_context(unread)? {
            let file = entry.with_context(unread)?.path();
            let name = file.file_name().unwrap_or_default();
            let hidden = name.as_encoded_bytes().starts_with(b".");
            if !hidden
                && file
                    .extension()
                    .is_some_and(|extension| extension == "cedar")
            {
                found.push(file);
            }
        }
        found.sort_unstable();
        files.extend(found);
    }
    Ok(files)
}

/// Writes `text` in place of the file at `path`, all or nothing. Where the path is a link, the file that it
/// leads to is replaced.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let path = path.canonicalize()?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = write(&temporary, text, fs::metadata(&path)?.permissions())
        .and_then(|()| fs::rename(&temporary, &path));
    if written.is_err() {
        // What is left over has no value; that it could not be written is told.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write(path: &Path, text: &str, permissions: fs::Permissions) -> io::Result<()> {
    let mut file = fs::File::create_new(path)?;
    file.set_permissions(permissions)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
