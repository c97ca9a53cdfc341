//! What have others changed of our containers since an injection put them in? One webhook leads images to a
//! registry of the cluster's own, another one sizes containers; the API server then asks us again. What they
//! changed stays, while we would put in the same as before.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::undo::Record;
use super::{INIT_CONTAINERS, containers, is_our_name, list_mut, name};

/// What others may have their way with. Nothing that a sidecar is protected by.
const THEIRS: [&str; 2] = ["image", "resources"];

/// What an injection wrote under each of [`THEIRS`], by container.
pub(super) type Put = BTreeMap<String, Map<String, Value>>;

/// What stands in `pod`, which was injected just now.
pub(super) fn put(pod: &Value) -> Put {
    let ours = containers(pod, INIT_CONTAINERS).filter(|container| is_our_name(name(container)));
    ours.map(|container| {
        let values = THEIRS.map(|key| (key.to_owned(), container[key].clone()));
        (name(container).to_owned(), Map::from_iter(values))
    })
    .collect()
}

/// Changes `injected` again as others had changed `before`, the same pod after an earlier injection.
pub(super) fn keep(before: &Value, injected: &mut Value) {
    let (Some(was), Some(is)) = (Record::of(before), Record::of(injected)) else {
        return;
    };
    for ours in list_mut(injected, INIT_CONTAINERS).into_iter().flatten() {
        let own = name(ours).to_owned();
        let Some((was, is)) = was.put.get(&own).zip(is.put.get(&own)) else {
            continue;
        };
        let found = containers(before, INIT_CONTAINERS).find(|container| name(container) == own);
        for key in THEIRS {
            let theirs = found.and_then(|container| container.get(key));
            if let Some(theirs) = theirs.filter(|_| was.get(key) == is.get(key)) {
                ours[key] = theirs.clone();
            }
        }
    }
}
