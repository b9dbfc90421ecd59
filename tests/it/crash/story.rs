//! What is typed, and how its typist knows that it is recorded and done.

use std::path::Path;

/// One thing that an operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// Serves in the end, and is watched.
    Push(&'static str),
    /// Never becomes ready.
    BadPush(&'static str),
    Kill,
    Rollback,
}

#[derive(Debug)]
pub(crate) struct Story {
    pub(crate) name: &'static str,
    pub(crate) ops: &'static [Op],
    /// The version that answers in the end.
    pub(crate) serves: &'static str,
    /// How it ends without a crash, as [`super::end::describe`] has it.
    pub(crate) end: &'static str,
}

/// The version that serves before a story begins.
pub(crate) const FIRST: &str = "1.0.0";
/// How long a bad version gets.
const READY_WITHIN: &str = "3s";

pub(crate) const STORIES: [Story; 5] = [
    Story {
        name: "push_kill_back",
        ops: &[Op::Push("1.1.0"), Op::Kill, Op::Rollback],
        serves: "1.0.0",
        end: "push of 1.0.0: ended, succeeded; create_group 1, flip 1, resize 1\n\
              push of 1.1.0: kept, rolled_back; create_group 1, disable 2, enable 1, flip 2, override_group 3, resize 1\n\
              hello-web-v000 hello-1.0.0 serving: in service healthy UP x 3\n\
              hello-web-v001 hello-1.1.0 disabled: in service healthy OUT_OF_SERVICE x 3",
    },
    Story {
        name: "push_push_kill",
        ops: &[Op::Push("1.1.0"), Op::Push("1.2.0"), Op::Kill],
        serves: "1.2.0",
        end: "push of 1.0.0: ended, succeeded; create_group 1, flip 1, resize 1\n\
              push of 1.1.0: ended, superseded; create_group 1, destroy 1, disable 1, flip 1, override_group 2, resize 1\n\
              push of 1.2.0: watch, -; create_group 1, disable 1, flip 1, override_group 1, resize 1\n\
              hello-web-v001 hello-1.1.0 disabled: in service healthy OUT_OF_SERVICE x 3\n\
              hello-web-v002 hello-1.2.0 serving: in service healthy UP x 3",
    },
    Story {
        name: "kill_push_back",
        ops: &[Op::Kill, Op::Push("1.1.0"), Op::Rollback],
        serves: "1.0.0",
        end: "push of 1.0.0: ended, succeeded; create_group 1, flip 1, resize 1\n\
              push of 1.1.0: kept, rolled_back; create_group 1, disable 2, enable 1, flip 2, override_group 3, resize 1\n\
              hello-web-v000 hello-1.0.0 serving: in service healthy UP x 3\n\
              hello-web-v001 hello-1.1.0 disabled: in service healthy OUT_OF_SERVICE x 3",
    },
    Story {
        name: "push_bad",
        ops: &[Op::Push("1.1.0"), Op::BadPush("1.2.0")],
        serves: "1.1.0",
        end: "push of 1.0.0: ended, succeeded; create_group 1, flip 1, resize 1\n\
              push of 1.1.0: watch, -; create_group 1, disable 1, flip 1, override_group 1, resize 1\n\
              push of 1.2.0: kept, cancelled; create_group 1, disable 1, override_group 1, resize 1\n\
              hello-web-v000 hello-1.0.0 disabled: in service healthy OUT_OF_SERVICE x 3\n\
              hello-web-v001 hello-1.1.0 serving: in service healthy UP x 3\n\
              hello-web-v002 hello-1.2.0 disabled: in service unhealthy OUT_OF_SERVICE x 3",
    },
    Story {
        name: "kill_push_kill",
        ops: &[Op::Kill, Op::Push("1.1.0"), Op::Kill],
        serves: "1.1.0",
        end: "push of 1.0.0: ended, succeeded; create_group 1, flip 1, resize 1\n\
              push of 1.1.0: watch, -; create_group 1, disable 1, flip 1, override_group 1, resize 1\n\
              hello-web-v000 hello-1.0.0 disabled: in service healthy OUT_OF_SERVICE x 3\n\
              hello-web-v001 hello-1.1.0 serving: in service healthy UP x 3",
    },
];

impl Op {
    /// The arguments to type. `mark` is the reason of a kill, by which it is known again in the ledger.
    pub(crate) fn args(self, state: &Path, mark: &str) -> Vec<String> {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        match self {
            Self::Push(version) => own(&push(&image(state, version).display().to_string(), "60s")),
            Self::BadPush(version) => own(&push(&image(state, version).display().to_string(), READY_WITHIN)),
            Self::Kill => own(&["kill", "hello-web", "--outside-window", "--reason", mark]),
            Self::Rollback => own(&["rollback", "hello-web", "--detach", "--reason", mark]),
        }
    }

    /// Writes the image that it pushes.
    pub(crate) fn write_image(self, state: &Path) {
        let (version, app) = match self {
            Self::Push(version) => (version, format!("greeting = \"{version}\"\n")),
            Self::BadPush(version) => (version, format!("greeting = \"{version}\"\nhealth_status = 503\n")),
            Self::Kill | Self::Rollback => return,
        };
        let written = crate::stage::image(state, version, &app);
        assert_eq!(written, image(state, version));
    }
}

fn image(state: &Path, version: &str) -> std::path::PathBuf {
    state.join(format!("hello-{version}"))
}

fn push<'a>(image: &'a str, ready_within: &'a str) -> [&'a str; 15] {
    [
        "deploy",
        "hello-web",
        "--image",
        image,
        "--team",
        "demo",
        "--soak",
        "1s",
        "--watch",
        "1h",
        "--drain",
        "1s",
        "--ready-within",
        ready_within,
        "--detach",
    ]
}
