//! Which names have a label of their own? Those that came first, up to a number.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Names as values of a label, bounded: authenticated peers are few, but nobody promises it. Clones share
/// what is known.
#[derive(Clone, Debug, Default)]
pub struct Names(Arc<Mutex<HashSet<Arc<str>>>>);

impl Names {
    /// The label of `name`: itself, or [`OTHER`] where [`MOST`] names came before it.
    #[must_use]
    pub fn label(&self, name: &str) -> Arc<str> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(name) {
            Some(name) => name.clone(),
            None if known.len() < MOST => {
                let name: Arc<str> = name.into();
                known.insert(name.clone());
                name
            }
            None => OTHER.into(),
        }
    }
}

/// Names that have a label of their own; what comes later is counted together.
pub const MOST: usize = 1000;

/// The label of the rest.
pub const OTHER: &str = "other";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_names_keep_their_label_and_the_rest_share_one() {
        let names = Names::default();
        for number in 0..MOST {
            let name = format!("spiffe://example.org/{number}");
            assert_eq!(*names.label(&name), name);
        }
        assert_eq!(&*names.clone().label("spiffe://example.org/late"), OTHER);
        let first = "spiffe://example.org/0";
        assert_eq!(&*names.label(first), first);
    }
}
