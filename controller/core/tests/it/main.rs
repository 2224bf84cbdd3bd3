//! Tests of the tick, in one binary: stories, each with its sentence, and properties of any input.

mod node;
mod outside;
mod properties;
mod stories;
mod tiers;
