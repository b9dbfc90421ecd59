//! A supervisor in small, for tests/sandbox.rs: starts a sandbox with one role, says so on standard output, and ends it
//! when its standard input ends. The same executable is the sandbox's helper, the role, and an instance's command.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use troop_cloud::local::sandbox::{Isolation, SandboxSpec, probe, start};
use troop_cloud::local::{INTERNAL, role, trial_main};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
    let done = match words.as_slice() {
        [internal, ..] if *internal == INTERNAL => return trial_main(&args[1..]),
        ["forward", target] => forward(target),
        ["answer", state] => answer(Path::new(state)),
        ["probe"] => probe(Path::new("/proc/self/exe")).map_err(Into::into),
        ["host", state, target] => host(state.into(), target),
        _ => Err("usage: sandbox_host host STATE TARGET | probe".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            say(&json!({"error": e.to_string()}));
            ExitCode::FAILURE
        }
    }
}

fn say(what: &serde_json::Value) {
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{what}").and_then(|()| out.flush()));
}

/// The supervisor.
fn host(state_dir: PathBuf, target: &str) -> Fallible<()> {
    let web = TcpListener::bind("127.0.0.1:0")?;
    let began = tokio::time::Instant::now();
    let mut sandbox = start(&SandboxSpec {
        exe: "/proc/self/exe".into(),
        state_dir,
        isolation: Isolation::Auto,
        boot_delay: Duration::ZERO,
        grace: Duration::ZERO,
        agents: false,
        registry_port: 8761,
    })?;
    let started = began.elapsed();
    let mut entered = sandbox.enter(&["forward", target], &[("web", web.as_fd())])?;
    let mut role = entered.command.spawn()?;
    drop(entered.command);
    say(&json!({
        "port": web.local_addr()?.port(),
        "init": sandbox.init_pid,
        "helper": sandbox.helper_pid(),
        "entered": role.id(),
        "start_ms": u64::try_from(started.as_millis())?,
    }));
    drop(web);
    std::io::stdin().read_to_end(&mut Vec::new())?;
    sandbox.end()?;
    role.wait()?;
    say(&json!({"ended": true}));
    Ok(())
}

/// A role: takes the listener it is handed and forwards each connection, in turn, into the sandbox.
fn forward(target: &str) -> Fallible<()> {
    let mut inherited = role::begin_role()?;
    let web = inherited.fds.remove("web").ok_or("no listener was handed over")?;
    for client in TcpListener::from(web).incoming() {
        let mut client = client?;
        if let Err(e) = forward_one(&client, target) {
            // The client may be gone as well.
            drop(write!(client, "HTTP/1.1 502 Bad Gateway\r\n\r\n{e}"));
        }
    }
    Ok(())
}

fn forward_one(mut client: &TcpStream, target: &str) -> Fallible<()> {
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line)?;
    let mut instance = TcpStream::connect_timeout(&target.parse()?, Duration::from_secs(1))?;
    instance.write_all(line.as_bytes())?;
    std::io::copy(&mut instance, &mut client)?;
    Ok(())
}

/// An instance's command: answers each request with what it finds about itself. `GET /via/ADDR` asks another instance.
fn answer(state: &Path) -> Fallible<()> {
    let listener = TcpListener::bind(format!("{}:{}", std::env::var("HOST")?, std::env::var("PORT")?))?;
    say(&json!({"listening": listener.local_addr()?.to_string()}));
    for client in listener.incoming() {
        if let Err(e) = answer_one(&client?, state) {
            say(&json!({"unanswered": e.to_string()}));
        }
    }
    Ok(())
}

fn answer_one(mut client: &TcpStream, state: &Path) -> Fallible<()> {
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line)?;
    let path = line.split_whitespace().nth(1).unwrap_or("/");
    let body = match path.strip_prefix("/via/") {
        Some(other) => {
            let mut stream = TcpStream::connect_timeout(&other.parse()?, Duration::from_secs(1))?;
            stream.write_all(b"GET / HTTP/1.1\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
        }
        None => about(state)?.to_string(),
    };
    Ok(write!(client, "HTTP/1.1 200 OK\r\n\r\n{body}")?)
}

fn about(state: &Path) -> Fallible<serde_json::Value> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim().to_owned()).unwrap_or_default()
    };
    let can_write = |dir: &str| std::fs::write(Path::new(dir).join("trial-file"), b"x").is_ok();
    let tmp = std::env::var("TMPDIR")?;
    let count = |dir: &Path| std::fs::read_dir(dir).map(Iterator::count).unwrap_or(0);
    let numbers = std::fs::read_dir("/proc")?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
        .count();
    let elsewhere = ["/", "/etc", "/image", "/usr", "/var", "/dev", "/home", "/root", "/troop/bin"];
    Ok(json!({
        "hostname": std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim(),
        "cwd": std::env::current_dir()?,
        "capabilities": field("CapEff:"),
        "bounding": field("CapBnd:"),
        "no_new_privs": field("NoNewPrivs:"),
        "writes_tmp": can_write(&tmp),
        "writes_elsewhere": elsewhere.into_iter().filter(|dir| can_write(dir)).collect::<Vec<_>>(),
        "sees_of_state": count(state),
        "processes": numbers,
        "environment": std::env::vars().map(|(name, _)| name).collect::<std::collections::BTreeSet<_>>(),
        "image": std::fs::read_to_string("data.txt").unwrap_or_default(),
    }))
}
