//! Amazon's cloud: Auto Scaling groups, their EC2 instances, and the load balancers before them.
//!
//! `AwsCloud` keeps the contract of [`crate::Cloud`] with what AWS gives: `journal` makes an intent take effect once,
//! `gatekeeper` lets no change out that no permitted act makes, `inventory` reads a region, `acts` changes it. Only this
//! folder names a type of the SDK's. Without the feature `aws` there is only the list of calls, and the IAM policy made from it.

pub mod calls;
pub mod iam;

#[cfg(feature = "aws")]
mod acts;
#[cfg(feature = "aws")]
mod balancing;
#[cfg(feature = "aws")]
mod claim;
#[cfg(feature = "aws")]
mod cloud;
#[cfg(feature = "aws")]
mod config;
#[cfg(feature = "aws")]
pub mod doctor;
#[cfg(feature = "aws")]
mod fault;
#[cfg(feature = "aws")]
mod gatekeeper;
#[cfg(feature = "aws")]
mod groups;
#[cfg(feature = "aws")]
mod images;
#[cfg(feature = "aws")]
mod inventory;
#[cfg(feature = "aws")]
mod journal;
#[cfg(feature = "aws")]
mod limiter;
#[cfg(feature = "aws")]
mod names;
#[cfg(feature = "aws")]
pub mod operator;
#[cfg(feature = "aws")]
mod raw;
#[cfg(feature = "aws")]
pub mod scope;
#[cfg(feature = "aws")]
mod tags;
#[cfg(feature = "aws")]
mod traffic;
#[cfg(feature = "aws")]
mod wire;

#[cfg(feature = "aws")]
pub use self::cloud::AwsCloud;
#[cfg(feature = "aws")]
use self::cloud::Place;
#[cfg(feature = "aws")]
pub use self::config::{AwsConfig, Clock, Credentials, FirstGroup, NameTags, Patience, RegionConfig};
#[cfg(feature = "aws")]
pub use self::fault::{Fault, Kind};
