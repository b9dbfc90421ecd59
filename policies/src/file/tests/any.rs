//! Files nobody would write, and every file that somebody might.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let text = String::from_utf8_lossy(&bytes);
        prop_assert_eq!(text_of("p.toml", &bytes).is_ok(), std::str::from_utf8(&bytes).is_ok());
        tell_all(&text);
    }

    /// Random text hardly ever is TOML; a real file with pieces cut out, doubled and put elsewhere mostly is, nearly.
    #[test]
    fn no_mutilated_policy_makes_it_panic(cuts in proptest::collection::vec((0usize..2600, 0usize..2600, 0usize..40), 1..6), piece in "\\PC{0,8}") {
        let mut text = SHOP.to_owned();
        for (from, to, len) in cuts {
            let taken: String = text.chars().skip(from).take(len).collect();
            let kept: String = text.chars().enumerate().filter(|(i, _)| len % 2 == 0 || !(from..from + len).contains(i)).map(|(_, c)| c).collect();
            text = kept.chars().take(to).collect::<String>() + &taken + &piece + &kept.chars().skip(to).collect::<String>();
        }
        tell_all(&text);
    }

    #[test]
    fn the_template_of_any_team_parses(name in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,60}") {
        let team = TeamName::new(name).unwrap();
        let text = template(&team);
        prop_assert_eq!(parse_policy("t.toml", &text).unwrap().0.team, team);
    }

    #[test]
    fn whatever_is_taken_keeps_what_a_policy_promises(mean in 0u32..20, min in 0u32..20, floor in 0u32..5, open in 0u32..24, close in 0u32..24) {
        let text = format!("{BASE_ROOT}[[windows]]\ndays = [\"mon\"]\nopen = \"{open:02}:00\"\nclose = \"{close:02}:00\"\n[apps.a]\nmin_serving = {floor}\n[apps.a.chaos]\nmean_workdays = {mean}\nmin_workdays = {min}\n");
        let possible = min >= 1 && mean >= min && floor >= 1 && open != close;
        prop_assert_eq!(parse_policy("t.toml", &text).is_ok(), possible);
    }
}

fn tell_all(text: &str) {
    let found = match parse_policy("p.toml", text) {
        Ok((_, found)) => found,
        Err(found) => {
            assert!(!found.is_empty(), "refused without a reason: {text:?}");
            found
        }
    };
    for diagnostic in found {
        assert!(diagnostic.line >= 1 && diagnostic.column >= 1 && !diagnostic.render(text).is_empty());
    }
    if let Err(found) = parse_site("s.toml", text) {
        assert!(found.iter().all(|d| !d.render(text).is_empty()));
    }
    team_of(text);
}
