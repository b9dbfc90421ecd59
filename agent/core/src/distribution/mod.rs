//! How delays vary and losses cluster: the tables of netem, and draws as the kernel makes them.

mod draw;
mod table;

pub use draw::{Correlated, Events, GilbertElliottState, delay_ns};
pub use table::{BadTable, ENTRIES_MAX, Measured, SAMPLES_MIN, SCALE, Table};

/// The shape of a delay's variation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Distribution {
    /// Evenly from delay - jitter to delay + jitter.
    #[default]
    Uniform,
    Normal,
    Pareto,
    ParetoNormal,
    /// Measured, or otherwise brought along.
    Table(Table),
}

impl Distribution {
    /// The table to draw from. `None` for the uniform distribution, which needs none.
    pub fn table(&self) -> Option<Table> {
        match self {
            Self::Uniform => None,
            Self::Normal => Some(Table::normal()),
            Self::Pareto => Some(Table::pareto()),
            Self::ParetoNormal => Some(Table::pareto_normal()),
            Self::Table(table) => Some(table.clone()),
        }
    }
}
