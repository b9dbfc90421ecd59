//! A run from its seed to its end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::time::Instant;
use troop::load::Load;

use super::story::{FIRST, Op, STORIES, Story};
use super::victims::{self, VICTIMS, Victim};
use super::{Dice, end, processes};
use crate::stage::{self, Machine, Up, interfaces, new_state, text};

/// What one thing that is typed may take to be done, with a restart in it and a kill's time to heal.
const DONE_WITHIN: Duration = Duration::from_secs(150);
/// What takes longer than this says why.
const SLOW: Duration = Duration::from_secs(20);
/// When a story is told, groups that were begun anew are still booting.
const SETTLED_WITHIN: Duration = Duration::from_secs(90);
const ASK_EVERY: Duration = Duration::from_millis(150);
/// As many requests may be in the hands of one process that is killed: the pace is 50 a second, and a busy machine
/// sends late ones in a burst.
const IN_ONES_HANDS: u64 = 10;
const PER_SECOND: u32 = 50;

/// One line of the table of outcomes.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) seed: u64,
    pub(crate) victim: &'static str,
    pub(crate) story: &'static str,
    pub(crate) moment: String,
    pub(crate) back: Duration,
    pub(crate) sent: u64,
    pub(crate) failed: u64,
    pub(crate) end: String,
    pub(crate) took: Duration,
}

impl Row {
    pub(crate) const HEAD: &'static str =
        "  seed  victim           story           moment                      back    sent  failed  took    end";

    pub(crate) fn line(&self) -> String {
        let Self { seed, victim, story, moment, back, sent, failed, end, took } = self;
        let (back, took) = (back.as_secs_f64(), took.as_secs_f64());
        format!(
            "{seed:6}  {victim:<15}  {story:<14}  {moment:<24} {back:5.1} s  {sent:6}  {failed:6}  {took:4.1} s  {end}"
        )
    }
}

/// When in a story the victim is killed.
#[derive(Debug, Clone, Copy)]
struct Moment {
    op: usize,
    after: Duration,
}

struct Run {
    seed: u64,
    dice: Dice,
    victim: Victim,
    machine: Machine,
    dir: tempfile::TempDir,
    /// Home, temporary and working folder of everything that is started; nothing may ever be in it.
    outside: tempfile::TempDir,
    host: BTreeSet<String>,
    up: Up,
    runtime: tokio::runtime::Runtime,
    load: Option<Load>,
    sent: u64,
    failed: u64,
    back: Duration,
    /// What was typed, and what was answered.
    typed: Vec<String>,
    /// What was held, and what ended it.
    held: Vec<String>,
    began: Instant,
    /// The healthy instances right before a crash that they outlive.
    serving: Vec<Value>,
}

/// Runs what the seed says.
pub(crate) fn run(seed: u64, machine: Machine) -> Row {
    let mut dice = Dice::new(seed);
    let victim = VICTIMS[usize::try_from(seed % 8).unwrap()];
    let story = &STORIES[dice.below(STORIES.len())];
    let op = dice.below(story.ops.len());
    // Often at once: much happens in the first moments of what is typed.
    let after_ms = if dice.below(3) == 0 { dice.below(300) } else { dice.below(4_000) };
    let moment = Moment { op, after: Duration::from_millis(u64::try_from(after_ms).unwrap()) };

    let mut run = Run::begin(seed, dice, victim, machine);
    let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.tell(story, moment)));
    if let Err(panic) = told {
        eprintln!("seed {seed}: {}, {story:?}, {moment:?}; typed so far:", victim.name());
        run.typed.iter().for_each(|line| eprintln!("  {line}"));
        std::panic::resume_unwind(panic);
    }
    let moment = format!("{:?} +{} ms", story.ops[op], moment.after.as_millis());
    Row {
        seed,
        victim: victim.name(),
        story: story.name,
        moment: if victim == Victim::Nobody { "-".to_owned() } else { moment },
        back: run.back,
        sent: run.sent,
        failed: run.failed,
        end: if run.held.is_empty() { "the same".to_owned() } else { run.held.join("; ") },
        took: run.began.elapsed(),
    }
}

fn command(machine: Machine, state: &Path, outside: &Path) -> Command {
    let mut command = machine.command(state);
    for name in ["HOME", "TMPDIR", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"] {
        command.env(name, outside);
    }
    command.current_dir(outside);
    command
}

impl Run {
    fn begin(seed: u64, dice: Dice, victim: Victim, machine: Machine) -> Self {
        let (dir, outside) = (new_state(), tempfile::Builder::new().prefix("outside").tempdir().unwrap());
        let host = interfaces();
        let began = Instant::now();
        let up = Up::start_from(command(machine, dir.path(), outside.path()), machine, dir.path());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self {
            seed,
            dice,
            victim,
            machine,
            dir,
            outside,
            host,
            up,
            runtime,
            load: None,
            sent: 0,
            failed: 0,
            back: Duration::ZERO,
            typed: Vec::new(),
            held: Vec::new(),
            began,
            serving: Vec::new(),
        }
    }

    fn tell(&mut self, story: &Story, moment: Moment) {
        self.perform(Op::Push(FIRST), "first", None);
        self.begin_load();
        for (number, op) in story.ops.iter().enumerate() {
            let crash = (number == moment.op && self.victim != Victim::Nobody).then_some(moment.after);
            self.perform(*op, &format!("crash run {}, {number}", self.seed), crash);
        }
        self.ends_as(story);
        self.the_rest_lived_on();
        self.end_load();
        self.leaves_nothing();
    }

    /// Types a command until it is recorded, and waits until what it wants is done.
    fn perform(&mut self, op: Op, mark: &str, crash: Option<Duration>) {
        op.write_image(&self.state());
        let typed = self.type_in(&op.args(&self.state(), mark));
        if let Some(after) = crash {
            std::thread::sleep(after);
            self.crash(&typed.1);
        }
        let mut said = self.answer(typed);
        let (began, mut waits_long) = (Instant::now(), false);
        loop {
            match self.progress(op, mark) {
                Progress::Done => return,
                Progress::Going => {}
                // Its request is taken up at the push's next look.
                Progress::NotRecorded if said.is_ok() && op == Op::Rollback => {}
                Progress::NotRecorded if said.is_ok() => panic!("{op:?} was answered with success and is not recorded"),
                Progress::NotRecorded if held_for_good(&said) => {
                    self.held.push(format!("{op:?} spared: {said:?}"));
                    return;
                }
                Progress::Stuck => {
                    self.held.push("stuck on its way back: `troop rollback` once more, as it says".to_owned());
                    let typed = self.type_in(&op.args(&self.state(), mark));
                    said = self.answer(typed);
                }
                Progress::NotRecorded => {
                    let typed = self.type_in(&op.args(&self.state(), mark));
                    said = self.answer(typed);
                }
            }
            self.clear_if_told_so();
            if began.elapsed() > SLOW && !waits_long {
                waits_long = true;
                let (pushes, status) = (self.up.run(&["pushes"]), self.up.run(&["status"]));
                eprintln!(
                    "seed {}: {op:?} waits: {said:?}\n{}{}",
                    self.seed,
                    text(&pushes.stdout),
                    text(&status.stdout)
                );
            }
            assert!(began.elapsed() < DONE_WITHIN, "{op:?} was never done");
            std::thread::sleep(ASK_EVERY);
        }
    }

    fn type_in(&mut self, args: &[String]) -> (String, Child) {
        let mut command = Command::new(stage::troop());
        command.args(args).arg("--state").arg(self.state()).stdin(Stdio::null());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        (format!("+{:.1} s $ troop {}", self.began.elapsed().as_secs_f64(), args.join(" ")), child)
    }

    /// Every answer is one that a person can go on from: no bug, no signal, and an error that says what.
    fn answer(&mut self, (line, child): (String, Child)) -> Result<(), String> {
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stderr);
        let code = output.status.code();
        self.typed.push(format!("{line}\n    {code:?} {}{said}", text(&output.stdout)));
        match code {
            Some(0) => Ok(()),
            Some(3..=6) => {
                // A verdict is data; everything else is an error.
                let verdict = text(&output.stdout).contains("not healed after");
                assert!(said.contains("error: ") || verdict, "`{line}` failed without a word");
                Err(said)
            }
            other => panic!("`{line}` ended with {other:?}: {said}"),
        }
    }

    fn progress(&self, op: Op, mark: &str) -> Progress {
        match op {
            Op::Push(version) => match self.pushed(version).as_slice() {
                [] => Progress::NotRecorded,
                [push] => {
                    assert!(push["result"].is_null() || push["result"] == "succeeded", "{push}");
                    let is_first = push["previous"].is_null();
                    let rests = push["phase"] == "watch" || (is_first && push["phase"] == "ended");
                    if rests { Progress::Done } else { Progress::Going }
                }
                many => panic!("one build was pushed more than once: {many:?}"),
            },
            Op::BadPush(version) => match self.pushed(version).as_slice() {
                [] => Progress::NotRecorded,
                [push] if push["result"] == "cancelled" => Progress::Done,
                [push] => {
                    assert!(push["result"].is_null(), "{push}");
                    Progress::Going
                }
                many => panic!("one build was pushed more than once: {many:?}"),
            },
            Op::Rollback => {
                let newest = self.pushes().into_iter().max_by_key(|push| push["push"].as_u64()).unwrap();
                match (newest["result"].as_str(), newest["phase"].as_str().unwrap()) {
                    (Some("rolled_back"), _) => Progress::Done,
                    (None, "watch") => Progress::NotRecorded,
                    (None, "stuck") => Progress::Stuck,
                    (None, phase) if phase.starts_with("back") => Progress::Going,
                    _ => panic!("a push that is rolled back became {newest}"),
                }
            }
            Op::Kill => match end::kill(&end::intents(&self.state()), mark) {
                None => Progress::NotRecorded,
                Some(row) if row.outcome.is_some() && self.status()["broken"] == Value::Array(Vec::new()) => {
                    Progress::Done
                }
                Some(_) => Progress::Going,
            },
        }
    }

    /// What has not healed in time says what to type; then it is typed.
    fn clear_if_told_so(&mut self) {
        let status = self.status();
        for broken in status["broken"].as_array().into_iter().flatten().filter(|b| b["state"] == "unhealed") {
            let key = broken["draw_key"].as_str().unwrap().to_owned();
            let said = text(&self.up.run(&["status"]).stdout);
            assert!(said.contains(&format!("until `troop clear {key} --reason …`")), "{said}");
            let typed = self.type_in(&["clear", &key, "--reason", "looked at"].map(str::to_owned));
            assert_eq!(self.answer(typed), Ok(()));
            self.held.push(format!("not healed ({}): cleared as `troop status` said", broken["why"]));
        }
    }

    fn crash(&mut self, typed: &Child) {
        let load = self.load.as_ref().unwrap();
        load.phase("crash");
        let began = Instant::now();
        if self.victim.takes_all_along() {
            self.end_load();
            victims::kill_all(&mut self.up, self.victim, &self.host, typed);
            self.nothing_is_outside();
            let began = Instant::now();
            let (state, machine) = (self.state(), self.machine);
            self.up = Up::start_from(command(machine, &state, self.outside.path()), machine, &state);
            self.begin_load();
            self.back = began.elapsed();
        } else {
            self.serving = self.instances().into_iter().filter(|i| i["health"] == "healthy").collect();
            let whom = victims::kill_one(&mut self.up, self.victim, &mut self.dice);
            self.typed.push(format!("+{:.1} s killed {whom}", self.began.elapsed().as_secs_f64()));
            stage::until("the control plane answers", SETTLED_WITHIN, || {
                self.up.run(&["ps"]).status.success().then_some(())
            });
            self.back = began.elapsed();
            // What was in the victim's hands, or on its way to it, has failed or been answered by then.
            std::thread::sleep(Duration::from_secs(1));
            self.load.as_ref().unwrap().phase("after");
        }
    }

    /// Compares with the end that the story has without a crash.
    fn ends_as(&mut self, story: &Story) {
        let kills: Vec<String> = (0..story.ops.len())
            .filter(|number| story.ops[*number] == Op::Kill)
            .map(|number| format!("crash run {}, {number}", self.seed))
            .collect();
        let spared = self.held.iter().filter(|held| held.starts_with("Kill spared")).count();
        let began = Instant::now();
        loop {
            let rows = end::intents(&self.state());
            let found = end::describe(&self.pushes(), &self.up.json(&["ps"]), &rows);
            let open: Vec<_> = rows.iter().filter(|row| row.outcome.is_none()).collect();
            let status = self.status();
            let quiet = status["broken"] == Value::Array(Vec::new()) && open.is_empty();
            if quiet && found == story.end {
                let killed = kills.iter().filter(|mark| end::kill(&rows, mark).is_some()).count();
                assert_eq!(killed + spared, kills.len(), "each kill that was typed happened once, or was spared");
                let all = rows.iter().filter(|row| row.kind == "terminate").count();
                assert_eq!(all, killed, "nothing was killed that nobody wanted");
                break;
            }
            let limit = began.elapsed() < SETTLED_WITHIN;
            assert!(limit, "it ends as\n{found}\nand not as without a crash\n{}\n{status}\n{open:?}", story.end);
            self.clear_if_told_so();
            std::thread::sleep(ASK_EVERY);
        }
        self.up.ok(&["ledger", "verify"]);
        let serving = story.serves;
        assert!(self.up.ok(&["curl", "hello-web", "/"]).contains(serving), "{serving} does not answer");
    }

    /// Whoever is gone was killed on purpose, or belonged to a group that was destroyed.
    fn the_rest_lived_on(&self) {
        let rows = end::intents(&self.state());
        let now: Vec<Value> = self.instances();
        let is_there = |id: &Value| now.iter().any(|i| i["instance"] == *id);
        let ended = |of: &str, key: &str, value: &Value| {
            rows.iter().any(|row| row.kind == of && row.body["intent"]["step"][key] == *value)
        };
        let gone: Vec<&Value> = self
            .serving
            .iter()
            .filter(|i| !is_there(&i["instance"]))
            .filter(|i| !ended("terminate", "instance", &i["instance"]) && !ended("destroy", "group", &i["group"]))
            .collect();
        let own = usize::from(self.victim == Victim::Instance);
        assert!(gone.len() <= own, "{} was killed, and these are gone: {gone:?}", self.victim.name());
    }

    fn begin_load(&mut self) {
        let _inside = self.runtime.enter();
        let load = Load::start(self.up.balancer(), "hello-web".to_owned(), PER_SECOND);
        self.runtime.block_on(async {
            let first = tokio::time::timeout(SETTLED_WITHIN, load.wait_until_first_ok()).await;
            assert!(first.is_ok(), "no request was answered within {SETTLED_WITHIN:?}");
        });
        // What was asked before anything served is no failure.
        load.phase("before");
        self.load = Some(load);
    }

    /// Ends the client: but for what was in the victim's hands no request may have failed.
    fn end_load(&mut self) {
        let Some(load) = self.load.take() else { return };
        let all_ended = self.victim.takes_all_along();
        for phase in self.runtime.block_on(load.finish()) {
            let warm_up = phase.name == troop::load::WARM_UP;
            self.sent += phase.sent;
            self.failed += if warm_up { 0 } else { phase.failed };
            let limit = match phase.name.as_str() {
                "crash" if self.victim.holds_requests() => IN_ONES_HANDS,
                _ => 0,
            };
            assert!(warm_up || all_ended && phase.name == "crash" || phase.other <= limit, "{phase:?}");
        }
    }

    fn leaves_nothing(&mut self) {
        let tree = processes::tree(self.up.pid());
        let spaces = processes::own_spaces(&tree);
        self.up.end(Signal::SIGTERM);
        victims::nothing_lives(self.dir.path(), &tree, &spaces, &self.host, None);
        self.nothing_is_outside();
        let said = self.up.ok(&["status"]);
        assert!(said.starts_with("nothing is broken by us right now"), "{said}");
        self.up.ok(&["ledger", "verify"]);
    }

    fn nothing_is_outside(&self) {
        let found: Vec<PathBuf> = std::fs::read_dir(self.outside.path()).unwrap().flatten().map(|e| e.path()).collect();
        assert!(found.is_empty(), "files outside the state folder: {found:?}");
    }

    fn state(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    fn pushes(&self) -> Vec<Value> {
        // While serve is being started again the answer may be that it is; then it is asked again.
        stage::until("pushes are told", SETTLED_WITHIN, || {
            let output = self.up.run(&["pushes", "--format", "json"]);
            let read = |line: &str| serde_json::from_str(line).unwrap();
            output.status.success().then(|| text(&output.stdout).lines().map(read).collect())
        })
    }

    fn pushed(&self, version: &str) -> Vec<Value> {
        self.pushes().into_iter().filter(|push| push["version"] == version).collect()
    }

    fn instances(&self) -> Vec<Value> {
        self.up.json(&["ps"])
    }

    fn status(&self) -> Value {
        let output = self.up.run(&["status", "--format", "json"]);
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

enum Progress {
    NotRecorded,
    Going,
    /// It could not go back, and the new group keeps serving until a person decides.
    Stuck,
    Done,
}

/// A gate that stays shut for longer than a run lasts.
fn held_for_good(said: &Result<(), String>) -> bool {
    said.as_ref().is_err_and(|said| said.contains("launch failed"))
}
