//! Bandwidth that loads share: a node's disk, the cluster's link to the store of checkpoints. Whoever loads at once
//! gets an equal part.

/// A shared link.
#[derive(Clone, Debug)]
pub struct Link {
    bytes_per_s: f64,
    /// Share of its speed that it has, 0..1: less while it is slow.
    pub speed: f64,
    loads: Vec<(u32, f64)>,
    advanced_ns: u64,
}

impl Link {
    /// A link of this bandwidth.
    pub fn new(bytes_per_s: f64) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1.0), speed: 1.0, loads: Vec::new(), advanced_ns: 0 }
    }

    /// Begins a load. The caller has advanced the link to now.
    pub fn begin(&mut self, who: u32, bytes: u64) {
        self.loads.push((who, bytes as f64));
    }

    /// Gives a load up.
    pub fn cancel(&mut self, who: u32) {
        self.loads.retain(|(other, _)| *other != who);
    }

    /// Moves to `now_ns`; returns whose loads are complete.
    pub fn advance(&mut self, now_ns: u64) -> Vec<u32> {
        let dt_s = now_ns.saturating_sub(self.advanced_ns) as f64 / 1e9;
        self.advanced_ns = self.advanced_ns.max(now_ns);
        let each = dt_s * self.bytes_per_s_each();
        for (_, left) in &mut self.loads {
            *left -= each;
        }
        let complete = self.loads.iter().filter(|(_, left)| *left < 1.0).map(|(who, _)| *who).collect();
        self.loads.retain(|(_, left)| *left >= 1.0);
        complete
    }

    /// When the next load is complete, if none begins before.
    pub fn due_ns(&self) -> Option<u64> {
        let least = self.loads.iter().map(|(_, left)| *left).min_by(f64::total_cmp)?;
        Some(self.advanced_ns + (least.max(0.0) / self.bytes_per_s_each() * 1e9).ceil() as u64 + 1)
    }

    fn bytes_per_s_each(&self) -> f64 {
        self.bytes_per_s * self.speed.max(1e-6) / self.loads.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_share_a_link() {
        let mut link = Link::new(100.0);
        link.begin(1, 100);
        assert!(link.advance(500_000_000).is_empty());
        link.begin(2, 100);
        // 50 bytes are left of the first, at 50 bytes per second.
        assert_eq!(link.due_ns().map(|at| at / 1_000_000), Some(1_500));
        assert_eq!(link.advance(1_500_000_001), [1]);
        link.speed = 0.5;
        assert_eq!(link.due_ns().map(|at| at / 1_000_000), Some(2_500));
        link.cancel(2);
        assert_eq!(link.due_ns(), None);
    }
}
