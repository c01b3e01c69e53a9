//! Who a step's device time was spent on. The time of encoding pictures goes to those whose pictures were encoded, by patches; the rest
//! to everyone in the step, by tokens. The shares of a step add up to its time, to the nanosecond.

use scheduler::{ItemShare, SequenceId};
use std::time::Duration;

/// `encoding` is the part of `total` that went into pictures, as far as the runner can tell.
pub fn of_step(
    total: Duration,
    encoding: Duration,
    shares: &[ItemShare],
) -> impl Iterator<Item = (SequenceId, Duration)> {
    let patches = shares.iter().map(|share| share.encoded_patches);
    let tokens = shares.iter().map(|share| share.num_tokens);
    // What nobody can be charged for by one measure is shared out by the other.
    let encoding = match (patches.clone().sum::<usize>(), tokens.clone().sum::<usize>()) {
        (0, _) => Duration::ZERO,
        (_, 0) => total,
        _ => encoding.min(total),
    };
    let by_patches = split(encoding, patches);
    let by_tokens = split(total - encoding, tokens);
    shares.iter().zip(by_patches.zip(by_tokens)).map(|(share, (a, b))| (share.id, a + b))
}

/// In proportion to the weights. Each part ends where the running sum of the weights says, rounded down, so that nothing is lost.
fn split(time: Duration, weights: impl Iterator<Item = usize> + Clone) -> impl Iterator<Item = Duration> {
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let total = weights.clone().sum::<usize>().max(1) as u64;
    let (mut sum, mut given) = (0, 0);
    weights.map(move |weight| {
        sum += weight as u64;
        let end = share_of(nanos, sum, total);
        let part = Duration::from_nanos(end - given);
        given = end;
        part
    })
}

/// `nanos * sum / total`, where `sum` is at most `total`.
fn share_of(nanos: u64, sum: u64, total: u64) -> u64 {
    match nanos.checked_mul(sum) {
        Some(product) => product / total,
        // Days, or millions of tokens.
        None => (u128::from(nanos) * u128::from(sum) / u128::from(total)) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(id: u64, num_tokens: usize, encoded_patches: usize) -> ItemShare {
        ItemShare { id: SequenceId(id), num_tokens, encoded_patches }
    }

    fn nanos(total: u64, encoding: u64, shares: &[ItemShare]) -> Vec<u128> {
        let shares = of_step(Duration::from_nanos(total), Duration::from_nanos(encoding), shares);
        shares.map(|(_, time)| time.as_nanos()).collect()
    }

    #[test]
    fn pictures_are_paid_by_those_who_brought_them() {
        assert_eq!(nanos(100, 60, &[share(1, 1, 0), share(2, 3, 16)]), [10, 90]);
        assert_eq!(nanos(100, 60, &[share(1, 1, 4), share(2, 3, 8)]), [10 + 20, 30 + 40]);
        // No tokens of its own in this step: only its picture.
        assert_eq!(nanos(100, 60, &[share(1, 4, 0), share(2, 0, 16)]), [40, 60]);
    }

    #[test]
    fn a_runner_that_cannot_tell_or_is_wrong_loses_nothing() {
        assert_eq!(nanos(100, 0, &[share(1, 1, 0), share(2, 3, 16)]), [25, 75]);
        assert_eq!(nanos(100, 60, &[share(1, 1, 0), share(2, 3, 0)]), [25, 75]);
        assert_eq!(nanos(100, 60, &[share(1, 0, 5)]), [100]);
        assert_eq!(nanos(100, 160, &[share(1, 1, 0), share(2, 3, 16)]), [0, 100]);
        assert_eq!(nanos(100, 60, &[]), [0; 0]);
        assert_eq!(nanos(100, 60, &[share(1, 0, 0)]), [0]);
    }

    #[test]
    fn shares_add_up_to_the_step() {
        let mut state = 9u64;
        let mut random = |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        for _ in 0..3000 {
            let size = 1 + random(36);
            let total = random(1 << size);
            let encoding = random(total + 2);
            let shares: Vec<_> = (0..1 + random(300))
                .map(|id| (id, [random(2000), random(3), random(5000)].map(|n| n as usize)))
                .map(|(id, [tokens, some, patches])| share(id, tokens, some * patches))
                .collect();
            let work: usize = shares.iter().map(|share| share.num_tokens + share.encoded_patches).sum();
            let sum: u128 = nanos(total, encoding, &shares).iter().sum();
            assert_eq!(sum, if work > 0 { u128::from(total) } else { 0 });
        }
    }
}
