//! Anything may stand in an audit file. Whatever does, the walk along its chain comes to an end, and what was
//! found is told.

use doorward::audit::verify::verify_lines;

pub fn check(bytes: &[u8]) {
    let report = verify_lines("audit", bytes, &[]).expect("memory can be read");
    for finding in &report.findings {
        assert!(!finding.fault.meaning().is_empty());
    }
    let lines: u64 = report
        .logs
        .iter()
        .flat_map(|log| &log.files)
        .map(|file| file.lines)
        .max()
        .unwrap_or(0);
    assert!(lines <= bytes.len() as u64);
}
