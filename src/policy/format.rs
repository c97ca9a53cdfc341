//! How is a policy laid out?

use cedar_policy::{ParseErrors, PolicySet};
use cedar_policy_formatter::Config;

use super::files::LoadError;
use super::finding::{Finding, Text};

/// The policies in `text`, laid out as everybody lays them out. Comments stay. `name` is what messages call
/// the file.
///
/// # Errors
/// What is not Cedar, in its place.
pub fn formatted(name: &str, text: &str) -> Result<String, LoadError> {
    let shown = Text::new(name, text.to_owned());
    text.parse::<PolicySet>().map_err(|errors: ParseErrors| {
        let found = errors.iter();
        LoadError::of(found.map(|error| Finding::of_cedar(error, &shown)))
    })?;
    let (head, policies) = text.split_at(head(text));
    let formatted = cedar_policy_formatter::policies_str_to_pretty(policies, &LAYOUT);
    let formatted =
        formatted.map_err(|error| LoadError::of([Finding::mistake(format!("{name}: {error}"))]))?;
    Ok(match (head.trim(), formatted.trim_start()) {
        ("", formatted) => formatted.to_owned(),
        (head, "") => format!("{head}\n"),
        (head, formatted) => format!("{head}\n\n{formatted}"),
    })
}

/// How long the comment is that a file begins with: up to the last empty line before the first policy. The
/// formatter would put it to that policy.
fn head(text: &str) -> usize {
    let (mut at, mut end) = (0, 0);
    for line in text.split_inclusive('\n') {
        let is_comment = line.starts_with("//");
        if !is_comment && !line.trim().is_empty() {
            break;
        }
        at += line.len();
        if !is_comment {
            end = at;
        }
    }
    end
}

const LAYOUT: Config = Config {
    line_width: 100,
    indent_width: 2,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_one_and_comments_stay() {
        let written = "// Of the team.\n// Two lines.\n\n\n// the first\n@id(\"a\")permit(principal,action,\n\
                       resource)when{context.port==1&& // why\n true};\n\n\n\
                       forbid(principal,action,resource); // behind\n// at the end";
        let expected = "// Of the team.\n// Two lines.\n\n// the first\n@id(\"a\")\n\
                        permit (principal, action, resource)\nwhen\n{\n  context.port == 1 && // why\n  true\n};\n\n\
                        forbid (principal, action, resource); // behind\n// at the end\n";
        let once = formatted("a.cedar", written).unwrap();
        assert_eq!(once, expected);
        assert_eq!(formatted("a.cedar", &once).unwrap(), once);
    }

    #[test]
    fn a_file_of_comments_alone_stays_what_it_is() {
        for text in ["", "// nothing yet\n", "// nothing\n\n// yet\n"] {
            assert_eq!(formatted("a.cedar", text).unwrap(), text);
        }
    }

    #[test]
    fn a_mistake_is_told_in_its_place() {
        let error = formatted("a.cedar", "// one\n\npermit (principal, action);").unwrap_err();
        let told = error.to_string();
        assert!(told.starts_with("a.cedar:3: "), "{told}");
    }
}
