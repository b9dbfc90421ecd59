//! One pace for all callers of a bucket: AWS counts calls per account, region and service, over all tools together, so Troop
//! stays well below what is known of the limits and slows down as one when it is told to.

use std::sync::Mutex;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant;

use super::calls::{Call, Service};
use super::config::Patience;

/// The longest that everybody waits after AWS said "too many", in first waits. With the usual second that is more than it takes
/// AWS to refill its buckets.
const PAUSES_MAX: u32 = 20;

/// A bucket of tokens that refills steadily.
#[derive(Debug)]
pub(crate) struct Limiter {
    per_s: f64,
    burst: f64,
    /// The longest first pause.
    pause: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Negative: so many callers are waiting already.
    tokens: f64,
    at: Instant,
    /// Throttles in a row.
    throttles: u32,
    paused_until: Instant,
    chance: StdRng,
}

/// Which bucket of AWS a call is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Bucket {
    Ec2Read,
    Ec2Change,
    AutoScaling,
    LoadBalancingRead,
    LoadBalancingChange,
    CloudWatch,
    Tokens,
}

impl Bucket {
    pub(crate) const ALL: [Self; 7] = [
        Self::Ec2Read,
        Self::Ec2Change,
        Self::AutoScaling,
        Self::LoadBalancingRead,
        Self::LoadBalancingChange,
        Self::CloudWatch,
        Self::Tokens,
    ];

    pub(crate) fn of(call: Call) -> Self {
        match (call.service(), call.mutates()) {
            (Service::Ec2, false) => Self::Ec2Read,
            (Service::Ec2, true) => Self::Ec2Change,
            (Service::AutoScaling, _) => Self::AutoScaling,
            (Service::LoadBalancing, false) => Self::LoadBalancingRead,
            (Service::LoadBalancing, true) => Self::LoadBalancingChange,
            (Service::CloudWatch, _) => Self::CloudWatch,
            (Service::Tokens, _) => Self::Tokens,
        }
    }

    /// Calls a second and at once. Published: EC2's describes 20/s and 100 at once for each, its changes 5/s and 50; Elastic
    /// Load Balancing's describes 10/s and 40. Auto Scaling's one bucket is not published. Half of that and less, since
    /// other tools live on the same.
    fn pace(self) -> (f64, f64) {
        match self {
            Self::Ec2Read => (8.0, 40.0),
            Self::Ec2Change => (2.0, 20.0),
            Self::AutoScaling => (4.0, 40.0),
            Self::LoadBalancingRead => (5.0, 25.0),
            Self::LoadBalancingChange => (2.0, 15.0),
            Self::CloudWatch => (5.0, 20.0),
            Self::Tokens => (2.0, 10.0),
        }
    }
}

impl Limiter {
    pub(crate) fn of(bucket: Bucket, patience: &Patience, seed: u64) -> Self {
        let (per_s, burst) = bucket.pace();
        let times = f64::from(patience.pace.max(1));
        Self::new(per_s * times, burst * times, patience.backoff, seed)
    }

    fn new(per_s: f64, burst: f64, pause: Duration, seed: u64) -> Self {
        let now = Instant::now();
        let chance = StdRng::seed_from_u64(seed);
        Self {
            per_s,
            burst,
            pause,
            state: Mutex::new(State { tokens: burst, at: now, throttles: 0, paused_until: now, chance }),
        }
    }

    /// Waits for its turn.
    pub(crate) async fn turn(&self) {
        let wait = self.book(Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes a token, also one that is yet to come, and says how long until then.
    fn book(&self, now: Instant) -> Duration {
        let mut state = self.lock();
        let gained = now.saturating_duration_since(state.at).as_secs_f64() * self.per_s;
        state.tokens = (state.tokens + gained).min(self.burst) - 1.0;
        state.at = now;
        let until_token = Duration::from_secs_f64((-state.tokens / self.per_s).max(0.0));
        let until_pause_ends = state.paused_until.saturating_duration_since(now);
        if until_pause_ends.is_zero() {
            return until_token;
        }
        // Those who waited for the pause to end do not all start in the same moment.
        until_token.max(until_pause_ends) + jitter(&mut state.chance, self.pause)
    }

    /// AWS said that it is too much: everybody waits, ever longer.
    pub(crate) fn throttled(&self) {
        let now = Instant::now();
        let mut state = self.lock();
        let longest = self.pause.saturating_mul((1 << state.throttles.min(5)).min(PAUSES_MAX));
        state.throttles = state.throttles.saturating_add(1);
        // At least half: a pause of nothing would not be one.
        let pause = longest / 2 + jitter(&mut state.chance, longest / 2);
        state.paused_until = state.paused_until.max(now + pause);
        state.tokens = state.tokens.min(0.0);
    }

    /// AWS answered.
    pub(crate) fn served(&self) {
        self.lock().throttles = 0;
    }

    /// A pause before the `attempt`th repetition of a call, from 1: each may be twice as long as the one before.
    pub(crate) fn backoff(&self, attempt: u32) -> Duration {
        let longest = self.pause.saturating_mul(1 << attempt.saturating_sub(1).min(4));
        jitter(&mut self.lock().chance, longest)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn jitter(chance: &mut StdRng, longest: Duration) -> Duration {
    longest.mul_f64(chance.random_range(0.0..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_free_and_the_rest_waits_its_turn() {
        let limiter = Limiter::new(2.0, 3.0, SECOND, 1);
        let began = Instant::now();
        for _ in 0..3 {
            limiter.turn().await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        for _ in 0..4 {
            limiter.turn().await;
        }
        let waited = began.elapsed().as_millis();
        assert!((1_990..2_010).contains(&waited), "{waited}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_throttle_holds_everybody_and_a_row_of_them_holds_longer() {
        let limiter = Limiter::new(100.0, 100.0, SECOND, 1);
        let mut waits = Vec::new();
        for _ in 0..8 {
            limiter.throttled();
            let began = Instant::now();
            limiter.turn().await;
            waits.push(began.elapsed());
        }
        assert!(waits[0] >= SECOND / 2, "{waits:?}");
        assert!(waits[7] >= SECOND * 10 && waits[7] <= SECOND * 21, "{waits:?}");
        limiter.served();
        limiter.throttled();
        let began = Instant::now();
        limiter.turn().await;
        assert!(began.elapsed() <= SECOND * 2, "an answer ends the row");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_the_end_of_a_pause_does_not_start_with_the_others() {
        let limiter = Limiter::new(100.0, 100.0, SECOND, 1);
        limiter.throttled();
        let now = Instant::now();
        let mut waits: Vec<Duration> = (0..5).map(|_| limiter.book(now)).collect();
        waits.sort_unstable();
        waits.dedup();
        assert_eq!(waits.len(), 5);
    }
}
