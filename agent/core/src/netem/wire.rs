//! The bytes of netem's TCA_OPTIONS: `struct tc_netem_qopt`, then attributes, without a mark that they are nested
//! (linux/pkt_sched.h; net/sched/sch_netem.c of Linux 6.18; written in the order of iproute2 6.1).

use super::BadOptions;
use super::attributes::{NESTED, Reader, put, split, words};
use super::options::{LossModel, Options, RateOptions, Slot};
use crate::distribution::{ENTRIES_MAX, Table};
use crate::fault::{Chance, GilbertElliott, Probability};

/// `sizeof(struct tc_netem_qopt)`: six numbers of 32 bits.
const QOPT_BYTES: usize = 24;
/// A tick of the packet scheduler (PSCHED_SHIFT 6), whatever the header says of microseconds.
const TICK_NS: u64 = 64;

// TCA_NETEM_*.
const CORR: u16 = 1;
const DELAY_DIST: u16 = 2;
const REORDER: u16 = 3;
const CORRUPT: u16 = 4;
const LOSS: u16 = 5;
const RATE: u16 = 6;
const ECN: u16 = 7;
const RATE64: u16 = 8;
const LATENCY64: u16 = 10;
const JITTER64: u16 = 11;
const SLOT: u16 = 12;
const SLOT_DIST: u16 = 13;
const PRNG_SEED: u16 = 14;

// Within LOSS: NETEM_LOSS_*.
const LOSS_GI: u16 = 1;
const LOSS_GE: u16 = 2;

/// What the qdisc was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// New: what is not said is off. The bytes are those of `tc`.
    New,
    /// There already: the kernel keeps correlations, reordering, corruption, rate, marking and slot unless it is told
    /// otherwise, so everything is said. It also keeps a table, which nothing but a new qdisc takes away.
    Change,
}

impl Options {
    /// The payload of TCA_OPTIONS.
    ///
    /// # Errors
    /// [`BadOptions::TooLarge`] when it is too long for the attribute, as with two of the largest tables.
    pub fn to_bytes(&self, write: Write) -> Result<Vec<u8>, BadOptions> {
        let all = write == Write::Change;
        let (latency, jitter) = (Ticks::of(self.latency_ns), Ticks::of(self.jitter_ns));
        let loss = self.loss.probability.bits();
        let mut bytes =
            words([latency.ticks, self.limit, loss, self.gap, self.duplicate.probability.bits(), jitter.ticks]);
        let correlations =
            [self.delay_correlation, self.loss.correlation, self.duplicate.correlation].map(Probability::bits);
        // `tc` sends the three also for a correlation of reordering or corruption, which have their own places.
        let others = [self.reorder.correlation, self.corrupt.correlation].map(Probability::bits);
        if all || correlations.iter().chain(&others).any(|c| *c != 0) {
            put(&mut bytes, CORR, &words(correlations))?;
        }
        if all || self.gap > 0 || self.reorder != Chance::default() {
            put(&mut bytes, REORDER, &chance(self.reorder))?;
        }
        if all || self.ecn {
            put(&mut bytes, ECN, &u32::from(self.ecn).to_ne_bytes())?;
        }
        if all || self.corrupt != Chance::default() {
            put(&mut bytes, CORRUPT, &chance(self.corrupt))?;
        }
        if all || self.slot.is_some() {
            put(&mut bytes, SLOT, &slot(self.slot.unwrap_or_default()))?;
        }
        if let Some(model) = self.loss_model {
            let mut nested = Vec::new();
            let (kind, numbers) = loss_model(model);
            put(&mut nested, kind, &numbers)?;
            put(&mut bytes, LOSS | NESTED, &nested)?;
        }
        if all || self.rate.is_some() {
            put_rate(&mut bytes, self.rate.unwrap_or(RateOptions::plain(0)))?;
        }
        for (kind, table) in [(DELAY_DIST, &self.table), (SLOT_DIST, &self.slot_table)] {
            if let Some(table) = table {
                let entries: Vec<u8> = table.entries().iter().flat_map(|e| e.to_ne_bytes()).collect();
                put(&mut bytes, kind, &entries)?;
            }
        }
        for (kind, time, ticks) in [(LATENCY64, self.latency_ns, latency), (JITTER64, self.jitter_ns, jitter)] {
            if !ticks.exact {
                put(&mut bytes, kind, &signed(time).to_ne_bytes())?;
            }
        }
        if let Some(seed) = self.seed {
            put(&mut bytes, PRNG_SEED, &seed.to_ne_bytes())?;
        }
        // These are themselves the payload of an attribute.
        put(&mut Vec::new(), 0, &bytes)?;
        Ok(bytes)
    }

    /// Reads the payload of TCA_OPTIONS, as it is sent or as the kernel dumps it. Attributes that are unknown are skipped:
    /// a newer kernel may have more.
    ///
    /// # Errors
    /// [`BadOptions`] when it is cut short or an attribute has another form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadOptions> {
        let (qopt, rest) = bytes.split_at_checked(QOPT_BYTES).ok_or(BadOptions::Short { bytes: bytes.len() })?;
        let mut qopt = Reader::new(0, qopt);
        let latency_ns = u64::from(qopt.u32()?) * TICK_NS;
        let limit = qopt.u32()?;
        let loss = Chance::of(Probability::from_bits(qopt.u32()?));
        let gap = qopt.u32()?;
        let duplicate = Chance::of(Probability::from_bits(qopt.u32()?));
        let jitter_ns = u64::from(qopt.u32()?) * TICK_NS;
        // A gap without an attribute means that every packet in its place is reordered.
        let reorder = if gap > 0 { Chance::of(Probability::ALWAYS) } else { Chance::default() };
        let mut options = Self { latency_ns, jitter_ns, limit, loss, gap, duplicate, reorder, ..Self::default() };
        let mut rate64 = 0;
        for (kind, payload) in split(rest)? {
            options.read(Reader::new(kind, payload), kind, payload, &mut rate64)?;
        }
        if let Some(rate) = options.rate.as_mut().filter(|_| rate64 != 0) {
            rate.bytes_per_second = rate.bytes_per_second.max(rate64);
        }
        options.rate = options.rate.filter(|rate| rate.bytes_per_second != 0);
        options.slot = options.slot.filter(|slot| *slot != Slot::default());
        Ok(options)
    }

    fn read(&mut self, mut from: Reader<'_>, kind: u16, payload: &[u8], rate64: &mut u64) -> Result<(), BadOptions> {
        match kind {
            CORR => {
                self.delay_correlation = Probability::from_bits(from.u32()?);
                self.loss.correlation = Probability::from_bits(from.u32()?);
                self.duplicate.correlation = Probability::from_bits(from.u32()?);
            }
            REORDER => self.reorder = read_chance(&mut from)?,
            CORRUPT => self.corrupt = read_chance(&mut from)?,
            LOSS => self.loss_model = split(payload)?.first().map(|nested| read_loss_model(*nested)).transpose()?,
            RATE => {
                self.rate = Some(RateOptions {
                    bytes_per_second: u64::from(from.u32()?),
                    packet_overhead: from.i32()?,
                    cell_size: from.u32()?,
                    cell_overhead: from.i32()?,
                });
            }
            RATE64 => *rate64 = from.u64()?,
            ECN => self.ecn = from.u32()? != 0,
            LATENCY64 => self.latency_ns = from.time_ns()?,
            JITTER64 => self.jitter_ns = from.time_ns()?,
            SLOT => self.slot = Some(read_slot(&mut from)?),
            DELAY_DIST => self.table = Some(read_table(kind, from)?),
            SLOT_DIST => self.slot_table = Some(read_table(kind, from)?),
            PRNG_SEED => self.seed = Some(from.u64()?),
            _ => {}
        }
        Ok(())
    }
}

/// A time in ticks, rounded down, and whether that is the time itself.
#[derive(Debug, Clone, Copy)]
struct Ticks {
    ticks: u32,
    exact: bool,
}

impl Ticks {
    fn of(ns: u64) -> Self {
        let ticks = u32::try_from(ns / TICK_NS).unwrap_or(u32::MAX);
        Self { ticks, exact: u64::from(ticks) * TICK_NS == ns }
    }
}

fn chance(chance: Chance) -> Vec<u8> {
    words([chance.probability.bits(), chance.correlation.bits()])
}

fn read_chance(from: &mut Reader<'_>) -> Result<Chance, BadOptions> {
    let probability = Probability::from_bits(from.u32()?);
    Ok(Chance { probability, correlation: Probability::from_bits(from.u32()?) })
}

fn loss_model(model: LossModel) -> (u16, Vec<u8>) {
    match model {
        LossModel::FourStates { p13, p31, p32, p14, p23 } => {
            (LOSS_GI, words([p13, p31, p32, p14, p23].map(Probability::bits)))
        }
        LossModel::GilbertElliott(GilbertElliott { to_bad, to_good, loss_when_bad, loss_when_good }) => {
            // The kernel wants h, the chance to get through in the bad state, and 1-k.
            let numbers = [to_bad, to_good, loss_when_bad.complement(), loss_when_good];
            (LOSS_GE, words(numbers.map(Probability::bits)))
        }
    }
}

fn read_loss_model((kind, payload): (u16, &[u8])) -> Result<LossModel, BadOptions> {
    let mut from = Reader::new(LOSS, payload);
    let mut next = || from.u32().map(Probability::from_bits);
    match kind {
        LOSS_GI => Ok(LossModel::FourStates { p13: next()?, p31: next()?, p32: next()?, p14: next()?, p23: next()? }),
        LOSS_GE => Ok(LossModel::GilbertElliott(GilbertElliott {
            to_bad: next()?,
            to_good: next()?,
            loss_when_bad: next()?.complement(),
            loss_when_good: next()?,
        })),
        _ => Err(BadOptions::Attribute { kind: LOSS }),
    }
}

/// From 2^32 bytes per second on the rate stands in an attribute of its own.
fn put_rate(bytes: &mut Vec<u8>, rate: RateOptions) -> Result<(), BadOptions> {
    let low = u32::try_from(rate.bytes_per_second).unwrap_or(u32::MAX);
    if u64::from(low) != rate.bytes_per_second {
        put(bytes, RATE64, &rate.bytes_per_second.to_ne_bytes())?;
    }
    let mut payload = words([low]);
    payload.extend(rate.packet_overhead.to_ne_bytes());
    payload.extend(rate.cell_size.to_ne_bytes());
    payload.extend(rate.cell_overhead.to_ne_bytes());
    put(bytes, RATE, &payload)
}

fn slot(slot: Slot) -> Vec<u8> {
    let mut payload = Vec::new();
    payload.extend(signed(slot.min_delay_ns).to_ne_bytes());
    payload.extend(signed(slot.max_delay_ns).to_ne_bytes());
    for count in [slot.max_packets, slot.max_bytes] {
        payload.extend(i32::try_from(count).unwrap_or(i32::MAX).to_ne_bytes());
    }
    payload.extend(signed(slot.delay_ns).to_ne_bytes());
    payload.extend(signed(slot.jitter_ns).to_ne_bytes());
    payload
}

fn read_slot(from: &mut Reader<'_>) -> Result<Slot, BadOptions> {
    let (min_delay_ns, max_delay_ns) = (from.time_ns()?, from.time_ns()?);
    // Never negative: the kernel refuses that.
    let mut count = || u32::try_from(from.i32()?).map_err(|_| BadOptions::Attribute { kind: SLOT });
    let (max_packets, max_bytes) = (count()?, count()?);
    Ok(Slot {
        min_delay_ns,
        max_delay_ns,
        max_packets,
        max_bytes,
        delay_ns: from.time_ns()?,
        jitter_ns: from.time_ns()?,
    })
}

fn read_table(kind: u16, from: Reader<'_>) -> Result<Table, BadOptions> {
    let mut entries = from.i16s();
    entries.truncate(ENTRIES_MAX + 1);
    Table::new(entries).map_err(|_| BadOptions::Attribute { kind })
}

/// The kernel's times are signed; 292 years are the most.
fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}
