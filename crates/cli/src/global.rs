//! The options that every command has.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, bail};

use crate::options::options;

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) enum Device {
    /// The processor.
    Cpu,
    /// The graphics card of this number.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let number = match s {
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            _ => s.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
        };
        number.map(Self::Cuda).ok_or_else(|| format!("found `{s}`, expected cpu, cuda or cuda:N"))
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

/// The precision of matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Precision {
    /// 32 bits everywhere.
    F32,
    /// 16-bit operands in matrix products, 32 bits elsewhere.
    Bf16,
}

impl From<Precision> for genus_ops::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

options!(
    /// The options that every command has.
    pub(crate) Global, GlobalFlags {
        /// Where to compute: cpu, cuda or cuda:N.
        #[arg(global = true, value_name = "DEVICE", help_heading = "Global options")]
        value device: Device = Device::Cpu,
        /// Precision of matrix products.
        #[arg(global = true, help_heading = "Global options")]
        value precision: Precision = Precision::F32,
        /// Number of threads; without it, as many as the operating system grants (affinity and container quota), one for each physical core at most.
        #[arg(global = true, value_name = "N", help_heading = "Global options")]
        maybe threads: usize,
        /// Seed of every random choice: the same seed gives the same result.
        #[arg(global = true, value_name = "N", help_heading = "Global options")]
        value seed: u64 = 0,
    }
);

impl Global {
    /// Refuses what this build cannot do, and sets the number of threads.
    pub(crate) fn apply(&self) -> anyhow::Result<()> {
        if let Device::Cuda(_) = self.device {
            self.device()?;
        }
        match self.threads {
            Some(0) => bail!("--threads 0: expected at least 1"),
            Some(n) => {
                genus_ops::pool::set_threads(n);
                // Tokenizers have a pool of their own; it fails only where one is in use already.
                let _ = rayon::ThreadPoolBuilder::new().num_threads(n).build_global();
            }
            None => {}
        }
        Ok(())
    }

    /// The precision of matrix products.
    pub(crate) fn precision(&self) -> genus_ops::Precision {
        self.precision.into()
    }

    /// The device to compute on.
    pub(crate) fn device(&self) -> anyhow::Result<genus_ops::Device> {
        let Device::Cuda(number) = self.device else { return Ok(genus_ops::Device::Cpu) };
        if !cfg!(feature = "cuda") {
            bail!(
                "--device {}: this program was built without CUDA; build it with `cargo build --release --features cuda`, or leave --device out",
                self.device
            );
        }
        genus_ops::Device::new_cuda(number)
            .with_context(|| format!("--device {}: the card cannot be used", self.device))
    }
}

#[cfg(test)]
mod tests {
    use super::Device;

    #[test]
    fn devices_parse_and_print() {
        for (text, device) in [("cpu", Device::Cpu), ("cuda", Device::Cuda(0)), ("cuda:3", Device::Cuda(3))] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        for wrong in ["gpu", "cuda:", "cuda:x", "CPU", ""] {
            let error = wrong.parse::<Device>().unwrap_err();
            assert!(error.contains(wrong) && error.contains("cuda:N"), "{error}");
        }
    }
}
