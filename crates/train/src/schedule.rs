//! The learning rate at each step.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// It stays.
    Constant,
    /// It falls in a straight line to the floor, which the last step has.
    Linear,
    /// It falls along half a cosine to the floor (Loshchilov and Hutter 2017, arXiv 1608.03983, one cycle).
    #[default]
    Cosine,
    /// `lr / sqrt(d_model) * min(1 / sqrt(step), step / warmup_steps^1.5)` (Vaswani et al. 2017, equation 3, times `lr`).
    Noam,
}

impl std::str::FromStr for ScheduleKind {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "constant" => Ok(ScheduleKind::Constant),
            "linear" => Ok(ScheduleKind::Linear),
            "cosine" => Ok(ScheduleKind::Cosine),
            "noam" => Ok(ScheduleKind::Noam),
            _ => Err(Error::config("schedule", format!("{s:?}"), "constant, linear, cosine or noam")),
        }
    }
}

impl std::fmt::Display for ScheduleKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ScheduleKind::Constant => "constant",
            ScheduleKind::Linear => "linear",
            ScheduleKind::Cosine => "cosine",
            ScheduleKind::Noam => "noam",
        })
    }
}

/// A learning rate for every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The course after the warm-up.
    pub kind: ScheduleKind,
    /// The highest learning rate (Noam: a factor; 1 is the paper's).
    pub lr: f64,
    /// Steps in which the rate rises in a straight line; step 1 has `lr / warmup_steps`.
    pub warmup_steps: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// The rate at the last step of `Linear` and `Cosine`, as a share of `lr`.
    pub floor: f64,
    /// The model's width, for `Noam`.
    pub d_model: usize,
}

impl Schedule {
    /// The learning rate of a step, counted from 1.
    pub fn at(&self, step: u64) -> f64 {
        let (s, w) = (step as f64, self.warmup_steps as f64);
        if self.kind == ScheduleKind::Noam {
            let rising = if self.warmup_steps == 0 { f64::INFINITY } else { s * w.powf(-1.5) };
            return self.lr * (self.d_model as f64).powf(-0.5) * rising.min(s.powf(-0.5));
        }
        if step < self.warmup_steps {
            return self.lr * s / w;
        }
        let rest = self.steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let t = ((s - w) / rest).clamp(0.0, 1.0);
        let falling = match self.kind {
            ScheduleKind::Linear => 1.0 - t,
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * t).cos()),
            _ => return self.lr,
        };
        self.lr * (self.floor + (1.0 - self.floor) * falling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind) -> Schedule {
        Schedule { kind, lr: 2.0, warmup_steps: 4, steps: 12, floor: 0.1, d_model: 512 }
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12 * b.abs().max(1.0), "{a} {b}");
    }

    #[test]
    fn warm_up_rises_in_a_straight_line() {
        for kind in [ScheduleKind::Constant, ScheduleKind::Linear, ScheduleKind::Cosine] {
            for (step, lr) in [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)] {
                close(schedule(kind).at(step), lr);
            }
        }
    }

    #[test]
    fn after_it_each_goes_its_way() {
        close(schedule(ScheduleKind::Constant).at(12), 2.0);
        close(schedule(ScheduleKind::Linear).at(8), 1.1);
        close(schedule(ScheduleKind::Linear).at(12), 0.2);
        close(schedule(ScheduleKind::Cosine).at(8), 1.1);
        close(schedule(ScheduleKind::Cosine).at(6), 2.0 * (0.1 + 0.45 * (1.0 + 0.5f64.sqrt())));
        close(schedule(ScheduleKind::Cosine).at(12), 0.2);
        // Beyond the end, as after a resumed run was lengthened by hand: the floor.
        close(schedule(ScheduleKind::Cosine).at(13), 0.2);
    }

    #[test]
    fn noam_has_its_peak_at_the_end_of_the_warm_up() {
        let s = Schedule { lr: 1.0, warmup_steps: 4000, ..schedule(ScheduleKind::Noam) };
        // The base model's peak, 7.0e-4.
        close(s.at(4000), 1.0 / (512.0f64 * 4000.0).sqrt());
        close(s.at(2000), s.at(4000) / 2.0);
        close(s.at(16000), s.at(4000) / 2.0);
    }

    #[test]
    fn no_warm_up_starts_at_the_peak() {
        for kind in [ScheduleKind::Constant, ScheduleKind::Noam] {
            let s = Schedule { warmup_steps: 0, ..schedule(kind) };
            assert!(s.at(1).is_finite() && s.at(1) >= s.at(2));
        }
    }
}
