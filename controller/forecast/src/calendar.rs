//! What traffic was like at this time of the day and of the week: mean rates of ten-minute slots of the last week.
//!
//! A copy of yesterday is a poor forecast, since levels shift; what carries over is the change. So the calendar
//! answers by how much the rate rose or fell over the same stretch of time a day or a week ago.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Length of a slot, s.
const SLOT_S: f64 = 600.0;
/// Slots of a day and of a week.
pub(crate) const DAY: usize = 144;
pub(crate) const WEEK: usize = 7 * DAY;

/// Rates of past slots, newest last: of a week and a little more.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Calendar {
    slots: VecDeque<f32>,
    filling_s: f64,
    filling: f64,
}

impl Calendar {
    /// Takes in what arrived in the next stretch of time.
    pub(crate) fn push(&mut self, count: f64, over_s: f64) {
        self.filling += count;
        self.filling_s += over_s;
        while self.filling_s >= SLOT_S - 1e-6 {
            let part = self.filling * (SLOT_S / self.filling_s).min(1.0);
            self.slots.push_back((part / SLOT_S) as f32);
            self.filling -= part;
            self.filling_s = (self.filling_s - SLOT_S).max(0.0);
            if self.slots.len() > WEEK + 2 * DAY {
                self.slots.pop_front();
            }
        }
    }

    /// Nothing was seen for so long: each slot of it is taken to be as the one a day before, where that is remembered.
    pub(crate) fn skip(&mut self, over_s: f64) {
        if self.slots.is_empty() || !over_s.is_finite() {
            return;
        }
        let most_s = SLOT_S * (WEEK + 2 * DAY) as f64;
        let mut left_s = over_s.clamp(0.0, most_s);
        while left_s > 1.0 {
            let part_s = left_s.min(SLOT_S - self.filling_s);
            let like = self.slots.len().checked_sub(DAY).and_then(|day_ago| self.slots.get(day_ago));
            let rate = like.or(self.slots.back()).copied().unwrap_or(0.0);
            self.push(f64::from(rate) * part_s, part_s);
            left_s -= part_s;
        }
    }

    /// By how much the rate changed, 1/s, over the stretch `ahead_s` from now, `period` slots ago; none where that is
    /// not remembered.
    pub(crate) fn change(&self, ahead_s: f64, period: usize) -> Option<f64> {
        let now = self.slots.len() as f64 + self.filling_s / SLOT_S - period as f64;
        Some(self.at(now + ahead_s / SLOT_S)? - self.at(now)?)
    }

    /// The rate at a place among the slots, 1/s, between the middles of the two slots next to it.
    fn at(&self, place: f64) -> Option<f64> {
        let middle = place - 0.5;
        if middle < 0.0 {
            return None;
        }
        let low = middle.floor();
        let before = f64::from(*self.slots.get(low as usize)?);
        let after = f64::from(*self.slots.get(low as usize + 1)?);
        Some(before + (middle - low) * (after - before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_seen_is_as_the_day_before() {
        let mut calendar = Calendar::default();
        for minute in 0..2 * DAY * 10 {
            calendar.push(6.0 * (minute / 10 % DAY) as f64, 60.0);
        }
        calendar.skip(5.5 * 3600.0);
        calendar.skip(f64::NAN);
        let change = calendar.change(600.0, DAY).map(|change| (change * 10.0).round());
        assert_eq!((calendar.slots.len(), change), (2 * DAY + 33, Some(1.0)));
        assert_eq!(calendar.slots.back().map(|rate| rate.round()), Some(3.0));
        calendar.skip(1e12);
        assert_eq!(calendar.slots.len(), WEEK + 2 * DAY);
    }

    #[test]
    fn the_change_of_yesterday_is_found_and_what_is_not_remembered_is_none() {
        let mut calendar = Calendar::default();
        for minute in 0..(WEEK + 1) * 10 {
            // A day that rises by 6 per minute in each ten minutes.
            calendar.push(6.0 * (minute / 10 % DAY) as f64, 60.0);
        }
        let changes = [(600.0, DAY), (3600.0, DAY), (600.0, WEEK), (600.0, 2 * WEEK)];
        let changes = changes.map(|(ahead_s, period)| calendar.change(ahead_s, period));
        let tenths = changes.map(|change| change.map(|change| (change * 10.0).round()));
        assert_eq!(tenths, [Some(1.0), Some(6.0), Some(1.0), None]);
    }
}
