//! Medians, percentiles and the interval of a median.

use lab::rng::Rng;

/// The value at a fraction of the sorted samples, interpolated; 0 of none.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a few thousand samples"
)]
pub(crate) fn quantile(samples: &[f64], fraction: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let position = fraction.clamp(0.0, 1.0) * sorted.len().saturating_sub(1) as f64;
    let below = position.floor() as usize;
    let low = sorted.get(below).copied().unwrap_or(0.0);
    let high = sorted.get(below + 1).copied().unwrap_or(low);
    low + (high - low) * (position - position.floor())
}

/// The middle of the samples.
pub(crate) fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// The distance between the quarter points.
pub(crate) fn spread(samples: &[f64]) -> f64 {
    quantile(samples, 0.75) - quantile(samples, 0.25)
}

/// A median with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(crate) struct Paired {
    /// The median of the paired values.
    pub(crate) median: f64,
    /// Lower end of the interval.
    pub(crate) lo: f64,
    /// Upper end of the interval.
    pub(crate) hi: f64,
}

/// The median of paired values and its 95 % bootstrap interval.
pub(crate) fn paired(values: &[f64]) -> Paired {
    let mut rng = Rng::new(0x5eed);
    let medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn: Vec<f64> = values.iter().filter_map(|_| rng.pick(values).copied()).collect();
            median(&drawn)
        })
        .collect();
    Paired { median: median(values), lo: quantile(&medians, 0.025), hi: quantile(&medians, 0.975) }
}

const RESAMPLES: usize = 2_000;

/// The slope of the straight line through the points with the least squares; 0 of fewer than two.
#[expect(clippy::cast_precision_loss, reason = "a handful of points")]
pub(crate) fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let (sum_x, sum_y) = points.iter().fold((0.0, 0.0), |(sx, sy), (x, y)| (sx + x, sy + y));
    let (mean_x, mean_y) = (sum_x / count, sum_y / count);
    let covariance: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let variance: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    if variance > 0.0 { covariance / variance } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_known_samples() {
        let samples = [4.0, 1.0, 3.0, 2.0, 5.0];
        assert_eq!(median(&samples), 3.0);
        assert_eq!(quantile(&samples, 1.0), 5.0);
        assert_eq!(spread(&samples), 2.0);
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[1.0, 2.0]), 1.5);
    }

    #[test]
    fn the_interval_of_equal_values_is_a_point_and_of_others_holds_the_median() {
        assert_eq!(paired(&[2.0; 9]), Paired { median: 2.0, lo: 2.0, hi: 2.0 });
        let values: Vec<f64> = (0..101).map(f64::from).collect();
        let interval = paired(&values);
        assert!(interval.lo < 50.0 && interval.hi > 50.0 && interval.hi - interval.lo < 50.0, "{interval:?}");
    }

    #[test]
    fn the_slope_of_a_line_is_its_slope() {
        assert!((slope(&[(1.0, 5.0), (2.0, 7.0), (3.0, 9.0)]) - 2.0).abs() < 1e-9);
        assert_eq!(slope(&[(1.0, 5.0)]), 0.0);
    }
}
