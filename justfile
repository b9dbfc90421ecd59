# One line each; CI runs the same commands.
check:
    cargo fmt --check && cargo clippy --workspace --all-targets && cargo doc --workspace --no-deps

test:
    cargo test --workspace

# Everything, also what needs root, user namespaces or Python.
all:
    tests/run

demo:
    cargo run --release -- demo

# Accepts new recorded output: schemas, command-line reference, snapshots.
snapshots:
    TROOP_BLESS=1 INSTA_UPDATE=always cargo test --workspace
