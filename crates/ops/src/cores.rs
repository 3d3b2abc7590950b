//! How many threads are sensible here by default.
//!
//! The operating system's grant counts first: the process's affinity mask and the quotas of its control groups (version 1 and 2),
//! both of which [`std::thread::available_parallelism`] respects, so a container with 2.5 processors' quota on a large machine gets 2.
//! Within the mask, two hardware threads of one core share its vector units: kernels that keep them busy gain nothing from a second
//! one and lose cache, so each core counts once.

use std::collections::BTreeSet;

/// Threads for kernels: what the operating system grants (affinity, control groups), at most one for each physical core of the
/// affinity mask.
pub fn default_threads() -> usize {
    let granted = std::thread::available_parallelism().map_or(1, |n| n.get());
    physical_cores().map_or(granted, |cores| granted.min(cores)).max(1)
}

/// Physical cores among the processors of this thread's affinity mask; `None` where the system does not tell.
pub fn physical_cores() -> Option<usize> {
    count(affinity()?, |cpu| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        std::fs::read_to_string(path).ok()
    })
}

/// Distinct sets of siblings; a processor whose siblings are not known counts as a core.
fn count(cpus: Vec<usize>, siblings: impl Fn(usize) -> Option<String>) -> Option<usize> {
    let core = |cpu: usize| siblings(cpu).map_or_else(|| format!("cpu {cpu}"), |list| list.trim().to_owned());
    let cores: BTreeSet<String> = cpus.into_iter().map(core).collect();
    (!cores.is_empty()).then_some(cores.len())
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn affinity() -> Option<Vec<usize>> {
    // SAFETY: the set is plain data for which all zeros is the empty set, and the call writes at most its size. It fails where
    // the machine has more processors than the set has room for (1024).
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return None;
        }
        Some((0..libc::CPU_SETSIZE as usize).filter(|&cpu| libc::CPU_ISSET(cpu, &set)).collect())
    }
}

#[cfg(not(target_os = "linux"))]
fn affinity() -> Option<Vec<usize>> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_threads_of_one_core_count_once() {
        // Four cores with two threads each, numbered as Linux does on most machines: 0 and 4 are one core.
        let list = |cpu: usize| Some(format!("{},{}\n", cpu % 4, cpu % 4 + 4));
        assert_eq!(count((0..8).collect(), list), Some(4));
        // A mask that holds both threads of one core, and one of another.
        assert_eq!(count(vec![0, 1, 4], list), Some(2));
        assert_eq!(count(vec![3], list), Some(1));
        assert_eq!(count(vec![0, 1, 2], |_| None), Some(3));
        assert_eq!(count(Vec::new(), list), None);
    }

    #[test]
    fn the_default_is_within_the_grant() {
        let granted = std::thread::available_parallelism().unwrap().get();
        assert!((1..=granted).contains(&default_threads()));
        if let (Some(cores), Some(cpus)) = (physical_cores(), affinity()) {
            assert!((1..=cpus.len()).contains(&cores));
        }
    }
}
