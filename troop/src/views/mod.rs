//! How answers look to people: from values to text. Nothing here asks, prints, or reads the time.

pub mod doctor;
pub mod explain;
pub mod forecast;
pub mod history;
pub mod plan;
pub mod policy;
pub mod running;
pub mod status;
pub mod time;
