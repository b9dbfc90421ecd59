//! What is going on, on stderr: a live line on a terminal, plain lines elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::ui;

/// Off a terminal, what is waited for is told when it has taken this long, and again when it changes, not more often.
const TELL_EVERY: Duration = Duration::from_secs(10);
const TELL_FIRST: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    began: Instant,
    told: Option<(Instant, String)>,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = ui::is_live().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            // Fails only on a template that is wrong, and then the standard one does.
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, began: Instant::now(), told: None }
    }

    /// What is waited for now.
    pub(super) fn waiting(&mut self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(ui::harmless(text).replace(['\n', '\t'], " "));
            return;
        }
        let due = match &self.told {
            None => self.began.elapsed() >= TELL_FIRST,
            Some((at, told)) => at.elapsed() >= TELL_EVERY && told != text,
        };
        if due {
            ui::note(&format!(".. {text}"));
            self.told = Some((Instant::now(), text.to_owned()));
        }
    }

    /// A line that stays.
    pub(super) fn line(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| ui::note(text)),
            None => ui::note(text),
        }
        self.began = Instant::now();
        self.told = None;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
