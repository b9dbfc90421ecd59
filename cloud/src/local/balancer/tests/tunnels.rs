//! Connections that client and instance agree to upgrade.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::stage::{Stage, instance_id, member, read_until, routes, within};

const ASKS: &[u8] = b"GET /chat HTTP/1.1\r\nhost: web\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const AGREES: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A client and an instance with a tunnel between them.
struct Pair {
    client: TcpStream,
    instance: TcpStream,
}

impl Pair {
    async fn open(stage: &mut Stage, listener: &TcpListener) -> Self {
        let mut client = TcpStream::connect(stage.address).await.unwrap();
        client.write_all(ASKS).await.unwrap();
        let (mut instance, _) = within(listener.accept()).await.unwrap();
        let asked = read_until(&mut instance, b"\r\n\r\n").await.to_ascii_lowercase();
        for part in
            ["get /chat http/1.1\r\n", "connection: upgrade\r\n", "upgrade: websocket\r\n", "sec-websocket-key: "]
        {
            assert!(asked.contains(part), "{part} is missing in {asked}");
        }
        // What comes with the head belongs to the tunnel already.
        instance.write_all(&[AGREES, b"welcome"].concat()).await.unwrap();
        let head = read_until(&mut client, b"\r\n\r\nwelcome").await.to_ascii_lowercase();
        for part in
            ["http/1.1 101 ", "connection: upgrade\r\n", "upgrade: websocket\r\n", "x-troop-group: web-v000\r\n"]
        {
            assert!(head.contains(part), "{part} is missing in {head}");
        }
        assert!(head.contains("sec-websocket-accept: "), "{head}");
        Self { client, instance }
    }

    /// Bytes pass both ways.
    async fn passes(&mut self) {
        self.client.write_all(b"ping").await.unwrap();
        read_until(&mut self.instance, b"ping").await;
        self.instance.write_all(b"pong").await.unwrap();
        read_until(&mut self.client, b"pong").await;
    }
}

/// Both ends see the end, as a close or a reset.
async fn ends(stream: &mut TcpStream) {
    let end = within(stream.read(&mut [0; 8])).await;
    assert!(end.as_ref().is_ok_and(|read| *read == 0) || end.is_err(), "{end:?}");
}

async fn stage() -> (Stage, TcpListener) {
    let mut stage = Stage::start(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    stage.push(routes(1, &[member(1, "web-v000", listener.local_addr().unwrap())])).await;
    (stage, listener)
}

#[tokio::test]
async fn an_upgraded_connection_passes_bytes_both_ways_and_is_in_flight_until_it_ends() {
    let (mut stage, listener) = stage().await;
    let mut pair = Pair::open(&mut stage, &listener).await;
    pair.passes().await;
    let report = stage.report(|report| report.in_flight[instance_id(1).as_str()] == 1).await;
    assert_eq!(report.traffic["web-v000"].in_flight, 1);
    // Much more than any buffer between, in both directions at once.
    let long: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_be_bytes()[3]).collect();
    let Pair { client, instance } = &mut pair;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_instance, mut to_instance) = instance.split();
    let both = async {
        let (mut up, mut down) = (vec![0; long.len()], vec![0; long.len()]);
        let (client_sent, instance_sent, instance_read, client_read) = tokio::join!(
            to_client.write_all(&long),
            to_instance.write_all(&long),
            from_instance.read_exact(&mut up),
            from_client.read_exact(&mut down)
        );
        client_sent.and(instance_sent).unwrap();
        instance_read.and(client_read).unwrap();
        assert!(up == long && down == long);
    };
    within(both).await;
    drop(pair.client);
    ends(&mut pair.instance).await;
    drop(pair.instance);
    let report = stage.report(|report| report.in_flight[instance_id(1).as_str()] == 0).await;
    assert_eq!((report.traffic["web-v000"].answers, report.traffic["web-v000"].failed), (1, 0));
    stage.stop().await;
}

#[tokio::test]
async fn a_tunnel_outlasts_its_instances_leaving_and_ends_with_the_drain() {
    let (mut stage, listener) = stage().await;
    let mut pair = Pair::open(&mut stage, &listener).await;
    stage.push(routes(2, &[])).await;
    pair.passes().await;
    let mut drained = routes(3, &[]);
    drained.drained = vec![instance_id(2)];
    stage.push(drained.clone()).await;
    pair.passes().await;
    drained.version = 4;
    drained.drained.push(instance_id(1));
    stage.push(drained).await;
    ends(&mut pair.client).await;
    ends(&mut pair.instance).await;
    stage.report(|report| report.in_flight.values().all(|count| *count == 0)).await;
    stage.stop().await;
}

#[tokio::test]
async fn a_tunnel_ends_with_its_instance_and_with_its_worker() {
    let (mut stage, listener) = stage().await;
    let mut pair = Pair::open(&mut stage, &listener).await;
    drop(pair.instance);
    ends(&mut pair.client).await;

    let mut pair = Pair::open(&mut stage, &listener).await;
    let began = Instant::now();
    stage.ask_to_stop();
    stage.stopped().await;
    assert!(began.elapsed() >= Duration::from_secs(1), "a tunnel has the time that requests have");
    ends(&mut pair.client).await;
    ends(&mut pair.instance).await;
}
