//! How do the application's answers come back to us, where it sees its clients' own addresses?
//!
//! With `client_address: kept` we connect to the application on the loopback from an address that is not ours.
//! Its answers go from a loopback address to that of the client, and would leave this host. One rule of routing
//! for each family keeps them: whatever begins here with a loopback address as its source stays here. Nothing
//! else ever has one, so nothing else changes.

use super::tool::{IP, ToolError};

/// One family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    /// Those that this host has.
    fn all() -> impl Iterator<Item = Self> {
        // Empty where IPv6 is switched off.
        let has_v6 = std::fs::read("/proc/net/if_inet6").is_ok_and(|text| !text.is_empty());
        [Some(Self::V4), has_v6.then_some(Self::V6)]
            .into_iter()
            .flatten()
    }

    fn is_set(self) -> Result<bool, ToolError> {
        let shown = IP.call(&[self.option(), "rule", "show", "pref", TABLE], "")?;
        Ok(!shown.trim().is_empty())
    }

    fn option(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }

    fn route(self) -> [&'static str; 9] {
        let option = self.option();
        [
            option, "route", "replace", "local", "default", "dev", "lo", "table", TABLE,
        ]
    }

    fn rule(self, verb: &'static str) -> [&'static str; 11] {
        let loopback = match self {
            Self::V4 => "127.0.0.0/8",
            Self::V6 => "::1/128",
        };
        let option = self.option();
        [
            option, "rule", verb, "pref", TABLE, "from", loopback, "iif", "lo", "lookup", TABLE,
        ]
    }

    fn flush(self) -> [&'static str; 5] {
        [self.option(), "route", "flush", "table", TABLE]
    }
}

/// Sets the rules, if they are not set.
///
/// # Errors
/// [`ToolError`] if there is no `ip`, or it refuses.
pub fn apply() -> Result<(), ToolError> {
    for family in Family::all() {
        // The way first: a rule that leads to an empty table leads past it.
        IP.call(&family.route(), "")?;
        if !family.is_set()? {
            IP.call(&family.rule("add"), "")?;
        }
    }
    Ok(())
}

/// Removes them, if they are set.
///
/// # Errors
/// [`ToolError`] if there is no `ip`, or it refuses.
pub fn remove() -> Result<(), ToolError> {
    for family in Family::all() {
        if family.is_set()? {
            IP.call(&family.rule("del"), "")?;
            IP.call(&family.flush(), "")?;
        }
    }
    Ok(())
}

/// Whether they are set.
///
/// # Errors
/// [`ToolError`] if there is no `ip`.
pub fn is_set() -> Result<bool, ToolError> {
    let set: Vec<bool> = Family::all()
        .map(Family::is_set)
        .collect::<Result<_, _>>()?;
    Ok(set.contains(&true))
}

/// What [`apply`] calls where nothing is set, one command a line.
#[must_use]
pub fn written() -> String {
    let lines =
        Family::all().flat_map(|family| [family.route().join(" "), family.rule("add").join(" ")]);
    lines.map(|line| format!("ip {line}\n")).collect()
}

/// What [`remove`] calls, one command a line.
#[must_use]
pub fn unwritten() -> String {
    let lines =
        Family::all().flat_map(|family| [family.rule("del").join(" "), family.flush().join(" ")]);
    lines.map(|line| format!("ip {line}\n")).collect()
}

/// The number of our table, and the preference of our rules: any that nobody else has.
const TABLE: &str = "3328";
