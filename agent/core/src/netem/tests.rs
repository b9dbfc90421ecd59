use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::distribution::{Distribution, ENTRIES_MAX, Table};
use crate::fault::{Chance, Delay, Effect, GilbertElliott, Loss, Order, Parts, Probability, Rate, Reorder};

const LINE: Line = Line { bytes_per_second: 125_000_000 };
const MS: u64 = 1_000_000;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/netem/captures")
}

/// The bytes that `tc` sent.
fn captured(name: &str) -> Vec<u8> {
    bytes_of(&folder().join(format!("{name}.txt")))
}

/// The bytes that Linux 6.1 dumped after it.
fn dumped(name: &str) -> Vec<u8> {
    bytes_of(&folder().join(format!("dumps/{name}.txt")))
}

fn bytes_of(capture: &Path) -> Vec<u8> {
    let text = std::fs::read_to_string(capture).unwrap();
    let digits: String = text.lines().skip(1).flat_map(str::split_whitespace).collect();
    digits.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn percent(percent: f64) -> Probability {
    Probability::from_percent(percent).unwrap()
}

fn chance(probability: f64, correlation: f64) -> Chance {
    Chance { probability: percent(probability), correlation: percent(correlation) }
}

fn eight() -> Table {
    Table::new(vec![-16384, -8192, -4096, -1, 0, 4096, 8192, 16384]).unwrap()
}

fn gemodel() -> GilbertElliott {
    GilbertElliott {
        to_bad: percent(1.0),
        to_good: percent(10.0),
        loss_when_bad: percent(70.0),
        loss_when_good: percent(0.1),
    }
}

/// Names of captures, and what asks for the same.
fn asked() -> Vec<(&'static str, Options)> {
    let none = Options { limit: 1000, ..Options::default() };
    let delay = |ms| Options { latency_ns: ms * MS, ..none.clone() };
    let jitter = Options { jitter_ns: 10 * MS, ..delay(100) };
    let loss = |loss| Options { loss, ..none.clone() };
    let model = |model| Options { loss_model: Some(model), ..none.clone() };
    let rate = |rate| Options { rate: Some(rate), ..none.clone() };
    let reorder = |reorder, gap| Options { reorder, gap, ..delay(10) };
    let slot = |slot| Options { slot: Some(slot), ..none.clone() };
    let always_bad =
        GilbertElliott { loss_when_bad: Probability::ALWAYS, loss_when_good: Probability::NEVER, ..gemodel() };
    let two_percent = GilbertElliott { to_bad: percent(2.0), to_good: percent(98.0), ..always_bad };
    let states = LossModel::FourStates {
        p13: percent(1.0),
        p31: percent(30.0),
        p32: percent(5.0),
        p14: percent(2.0),
        p23: percent(40.0),
    };
    let mbit = RateOptions::plain(125_000);
    let cells = |plain| RateOptions { packet_overhead: 20, cell_size: 100, cell_overhead: 5, ..plain };
    let fast = RateOptions::plain(5_000_000_000);
    let window = Slot { min_delay_ns: MS * 8 / 10, max_delay_ns: MS, ..Slot::default() };
    let several = Options {
        limit: 50_000,
        delay_correlation: percent(25.0),
        table: Some(eight()),
        loss: chance(3.0, 20.0),
        duplicate: chance(1.0, 5.0),
        gap: 3,
        reorder: chance(25.0, 50.0),
        corrupt: chance(0.1, 2.0),
        rate: Some(RateOptions::plain(12_500_000)),
        ..jitter.clone()
    };
    let several_models = Options {
        limit: 50_000,
        loss_model: Some(LossModel::GilbertElliott(gemodel())),
        ecn: true,
        duplicate: chance(1.0, 0.0),
        rate: Some(cells(fast)),
        slot: Some(window),
        ..delay(5)
    };
    vec![
        ("delay", delay(100)),
        ("delay_long", delay(60_000)),
        ("limit", Options { limit: 250_000, ..delay(100) }),
        ("jitter", jitter.clone()),
        ("correlated", Options { delay_correlation: percent(25.0), ..jitter.clone() }),
        ("table", Options { delay_correlation: percent(25.0), table: Some(eight()), ..jitter.clone() }),
        ("loss", loss(chance(7.0, 25.0))),
        ("loss_plain", loss(chance(30.0, 0.0))),
        ("loss_all", loss(chance(100.0, 0.0))),
        ("ecn", Options { ecn: true, ..loss(chance(1.0, 0.0)) }),
        ("gemodel", model(LossModel::GilbertElliott(gemodel()))),
        ("gemodel_short", model(LossModel::GilbertElliott(always_bad))),
        ("gemodel_p", model(LossModel::GilbertElliott(two_percent))),
        ("state", model(states)),
        ("duplicate", Options { duplicate: chance(3.0, 0.0), ..none.clone() }),
        ("corrupt", Options { corrupt: chance(5.0, 0.0), ..none.clone() }),
        ("corrupt_correlated", Options { corrupt: chance(5.0, 10.0), ..none.clone() }),
        ("reorder", reorder(chance(25.0, 50.0), 1)),
        ("reorder_gap", reorder(chance(25.0, 50.0), 5)),
        ("reorder_plain", reorder(chance(25.0, 0.0), 1)),
        ("rate", rate(mbit)),
        ("rate_cells", rate(cells(mbit))),
        ("rate_negative", rate(RateOptions { packet_overhead: -14, ..mbit })),
        ("rate64", rate(fast)),
        ("slot", slot(Slot { max_packets: 10, max_bytes: 5000, ..window })),
        (
            "slot_dist",
            Options {
                slot_table: Some(eight()),
                ..slot(Slot { delay_ns: 2 * MS, jitter_ns: MS / 10, ..Slot::default() })
            },
        ),
        ("several", several),
        ("several_models", several_models),
    ]
}

/// Captures that are held against something else than `asked`.
const APART: [&str; 4] = ["duplicate_correlated", "prio", "prio_map", "prio_default"];

#[test]
#[cfg(target_endian = "little")]
fn writes_the_bytes_that_tc_sends() {
    for (name, options) in asked() {
        assert_eq!(options.to_bytes(Write::New).unwrap(), captured(name), "{name}");
    }
}

#[test]
#[cfg(target_endian = "little")]
fn reads_what_tc_sends_as_what_was_asked_for() {
    for (name, options) in asked() {
        assert_eq!(Options::from_bytes(&captured(name)).unwrap(), options, "{name}");
    }
}

#[test]
fn every_capture_is_used() {
    let used: BTreeSet<String> = asked().iter().map(|(name, _)| *name).chain(APART).map(str::to_owned).collect();
    let files = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let texts = files.filter(|path| path.extension().is_some_and(|e| e == "txt"));
    let captures: BTreeSet<String> =
        texts.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(used, captures);
    assert!(used.iter().all(|name| folder().join(format!("dumps/{name}.txt")).exists()));
}

#[test]
#[cfg(target_endian = "little")]
fn a_correlation_of_duplicates_alone_is_sent_though_tc_forgets_it() {
    let options = Options { limit: 1000, duplicate: chance(3.0, 40.0), ..Options::default() };
    let bytes = options.to_bytes(Write::New).unwrap();
    let theirs = captured("duplicate_correlated");
    assert_eq!(bytes[..theirs.len()], theirs);
    assert_eq!(Options::from_bytes(&theirs).unwrap().duplicate, chance(3.0, 0.0));
    assert_eq!(Options::from_bytes(&bytes).unwrap(), options);
}

#[test]
#[cfg(target_endian = "little")]
fn prio_is_told_what_tc_tells_it() {
    let mut map = *Prio::WITH_A_BAND_FOR_NETEM.map();
    let plain = Prio::new(3, map).unwrap();
    (map[0], map[1], map[15]) = (4, 3, 4);
    let rows =
        [("prio", Prio::WITH_A_BAND_FOR_NETEM), ("prio_default", plain), ("prio_map", Prio::new(5, map).unwrap())];
    for (name, prio) in rows {
        // `tc` appends an empty attribute of four bytes, in which the kernel looks for nothing.
        assert_eq!(prio.to_bytes(), captured(name)[..20], "{name}");
        assert_eq!(Prio::from_bytes(&captured(name)), Ok(prio), "{name}");
    }
}

#[test]
fn prio_leads_nothing_by_itself_to_the_band_of_netem() {
    let prio = Prio::WITH_A_BAND_FOR_NETEM;
    assert!(prio.map().iter().all(|band| *band < prio.bands() - 1));
    assert_eq!(Prio::new(3, [3; 16]), None);
    assert_eq!(Prio::new(17, [0; 16]), None);
    assert!(Prio::from_bytes(&prio.to_bytes()[..19]).is_err());
}

#[test]
fn times_that_ticks_cannot_hold_are_sent_in_nanoseconds() {
    for latency_ns in [1, 63, 1_000, 300_000 * MS] {
        let options = Options { latency_ns, jitter_ns: 1_001, ..Options::default() };
        let bytes = options.to_bytes(Write::New).unwrap();
        assert_eq!(bytes.len(), 24 + 12 + 12, "{latency_ns}");
        assert_eq!(Options::from_bytes(&bytes).unwrap(), options);
    }
}

#[test]
fn a_change_says_everything_so_that_nothing_stays_from_before() {
    let everything = asked().into_iter().find(|(name, _)| *name == "several_models").unwrap().1;
    let plain = Options { latency_ns: MS, limit: 5, ..Options::default() };
    for options in [everything, plain] {
        let bytes = options.to_bytes(Write::Change).unwrap();
        assert_eq!(Options::from_bytes(&bytes).unwrap(), options);
        let kinds: BTreeSet<u16> = attributes::split(&bytes[24..]).unwrap().into_iter().map(|(kind, _)| kind).collect();
        // CORR, REORDER, CORRUPT, RATE, ECN, SLOT.
        assert!(kinds.is_superset(&[1, 3, 4, 6, 7, 12].into()), "{kinds:?}");
    }
}

#[test]
#[cfg(target_endian = "little")]
fn what_the_kernel_dumps_is_what_it_was_told() {
    for (name, options) in asked() {
        let found = Options::from_bytes(&dumped(name)).unwrap();
        assert_eq!(options.differences(&found), [], "{name}");
    }
    for name in ["prio", "prio_map", "prio_default"] {
        assert_eq!(dumped(name), captured(name)[..20], "{name}");
    }
}

#[test]
#[cfg(target_endian = "little")]
fn dumps_of_different_options_differ() {
    // Dumps hold no table: without it these are the same.
    let same = |name: &str| if name == "table" { "correlated" } else { name }.to_owned();
    let asked = asked();
    for (name, options) in &asked {
        for (other, _) in asked.iter().filter(|(other, _)| same(other) != same(name)) {
            let found = Options::from_bytes(&dumped(other)).unwrap();
            assert!(!options.differences(&found).is_empty(), "{name} and {other}");
        }
    }
}

#[test]
fn a_newer_kernels_seed_and_padding_are_read_over() {
    let options = Options { latency_ns: MS, limit: 1000, ..Options::default() };
    let mut dump = options.to_bytes(Write::Change).unwrap();
    attributes::put(&mut dump, 9, &[]).unwrap();
    attributes::put(&mut dump, 14, &7_u64.to_ne_bytes()).unwrap();
    let found = Options::from_bytes(&dump).unwrap();
    assert_eq!(options.differences(&found), []);
    assert_eq!(found.seed, Some(7));
}

#[test]
fn refuses_what_is_cut_short_and_skips_what_is_new() {
    let (_, several) = asked().pop().unwrap();
    let mut bytes = several.to_bytes(Write::New).unwrap();
    assert!(Options::from_bytes(&bytes[..23]).is_err());
    assert!(Options::from_bytes(&bytes[..bytes.len() - 4]).is_err());
    attributes::put(&mut bytes, 40, &[1, 2, 3]).unwrap();
    assert_eq!(Options::from_bytes(&bytes).unwrap(), several);
}

#[test]
fn one_largest_table_fits_and_two_do_not() {
    let largest = || Some(Table::new(vec![1; ENTRIES_MAX]).unwrap());
    let one = Options { table: largest(), ..Options::default() };
    assert_eq!(Options::from_bytes(&one.to_bytes(Write::New).unwrap()).unwrap(), one);
    let two = Options { slot_table: largest(), ..one };
    assert!(matches!(two.to_bytes(Write::New), Err(BadOptions::TooLarge { .. })));
}

/// A fault's parts go to the kernel as `tc` would have been told.
#[test]
#[cfg(target_endian = "little")]
fn an_effect_is_written_as_tc_writes_it() {
    let table = Distribution::Table(eight());
    let delay = Delay::fixed(Duration::from_millis(100))
        .unwrap()
        .varied(Duration::from_millis(10), percent(25.0), table, Order::ByTime)
        .unwrap();
    let effect = Effect::new(Parts {
        delay: Some(delay),
        loss: Some(Loss::Random(chance(3.0, 20.0))),
        duplicate: Some(chance(1.0, 5.0)),
        reorder: Some(Reorder::new(chance(25.0, 50.0), 3).unwrap()),
        corrupt: Some(chance(0.1, 2.0)),
        rate: Some(Rate::bytes_per_second(12_500_000).unwrap()),
    })
    .unwrap();
    let options = Options { limit: 50_000, ..Options::of(effect.parts(), LINE) };
    assert_eq!(options.to_bytes(Write::New).unwrap(), captured("several"));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(Options::from_bytes(&bytes));
        drop(Prio::from_bytes(&bytes));
    }

    #[test]
    fn no_byte_set_otherwise_makes_it_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let (_, options) = asked().pop().unwrap();
        let mut bytes = options.to_bytes(Write::Change).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        drop(Options::from_bytes(&bytes));
    }

    #[test]
    fn what_is_written_is_read_back(
        latency_ns in 0..=i64::MAX as u64, jitter_ns in 0..=i64::MAX as u64, numbers in any::<[u32; 12]>(),
        rate in proptest::option::of((1..=u64::MAX, any::<i32>(), any::<u32>(), any::<i32>())), ecn in any::<bool>(),
        seed in any::<Option<u64>>(), change in any::<bool>(),
    ) {
        let p = |n: usize| Probability::from_bits(numbers[n]);
        let both = |n: usize| Chance { probability: p(n), correlation: p(n + 1) };
        let options = Options {
            latency_ns,
            jitter_ns,
            delay_correlation: p(0),
            limit: numbers[1],
            loss: both(2),
            duplicate: both(4),
            gap: numbers[6],
            reorder: both(7),
            corrupt: both(9),
            rate: rate.map(|(bytes_per_second, packet_overhead, cell_size, cell_overhead)| {
                RateOptions { bytes_per_second, packet_overhead, cell_size, cell_overhead }
            }),
            ecn,
            seed,
            ..Options::default()
        };
        let write = if change { Write::Change } else { Write::New };
        prop_assert_eq!(Options::from_bytes(&options.to_bytes(write).unwrap()), Ok(options));
    }
}
