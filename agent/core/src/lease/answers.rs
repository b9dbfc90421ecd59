//! What was answered to which command, so that a command which comes again has no effect and the same answer.

use std::collections::BTreeMap;

use super::{Answer, Command, CommandNumber, Refusal};

/// Commands remembered: 64 leases renewed sixteen times. What is older than all of them is refused, as it may have been
/// forgotten.
const REMEMBERED_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct Answers {
    /// Every number up to it counts as used.
    used_up_to: CommandNumber,
    remembered: BTreeMap<CommandNumber, (Command, Answer)>,
}

impl Answers {
    pub(super) fn after(used_up_to: CommandNumber) -> Self {
        Self { used_up_to, remembered: BTreeMap::new() }
    }

    pub(super) fn highest(&self) -> CommandNumber {
        self.remembered.last_key_value().map_or(self.used_up_to, |(number, _)| *number)
    }

    /// The answer to a command that came before. `None`: it is new.
    pub(super) fn known(&self, number: CommandNumber, command: &Command) -> Option<Answer> {
        match self.remembered.get(&number) {
            Some((first, answer)) if first == command => Some(answer.clone()),
            Some(_) => Some(Answer::Refused(Refusal::NumberReused)),
            None => (number <= self.used_up_to).then_some(Answer::Refused(Refusal::Stale)),
        }
    }

    pub(super) fn remember(&mut self, number: CommandNumber, command: Command, answer: Answer) {
        self.remembered.insert(number, (command, answer));
        if self.remembered.len() > REMEMBERED_MAX
            && let Some((oldest, _)) = self.remembered.pop_first()
        {
            self.used_up_to = self.used_up_to.max(oldest);
        }
    }
}
