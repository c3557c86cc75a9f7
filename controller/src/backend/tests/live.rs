//! What stays open: followed events, watched commands, streams, and how they end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::double::succeeded;
use super::*;
use axum::body::BodyDataStream;
use fairlead_protocol::CommandId;
use fairlead_protocol::stream::flow::{Client, Flow};
use fairlead_protocol::stream::{Channel, frame};
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Message, error::Error as WsError};

const SOON: Duration = Duration::from_secs(30);

/// The next text of a stream of server-sent events, comments left out.
async fn next_event(body: &mut BodyDataStream) -> Option<String> {
    loop {
        let chunk = tokio::time::timeout(SOON, body.next())
            .await
            .expect("nothing came")?;
        let text = String::from_utf8(chunk.unwrap().to_vec()).unwrap();
        if !text.starts_with(':') {
            return Some(text);
        }
    }
}

impl World {
    async fn open(&self, token: &str, path: &str, last: Option<&str>) -> BodyDataStream {
        let mut asked = request(Method::GET, token, path, None);
        if let Some(last) = last {
            asked
                .headers_mut()
                .insert("last-event-id", last.parse().unwrap());
        }
        let response = self.router.clone().oneshot(asked).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        response.into_body().into_data_stream()
    }

    async fn happened(&self, host: Option<HostId>, region: &str, action: &str) {
        self.feed
            .record("default", host, region, action, "")
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn followers_resume_where_they_were_and_see_only_what_they_may() {
    let world = World::new().await;
    let scoped = world
        .token_of("default", &[Permission::Read], json!({"regions": ["here"]}))
        .await;
    world.happened(Some(BOX), "here", "one").await;
    world.happened(Some(FAR), "there", "hidden").await;
    world.happened(None, "", "hidden too").await;
    world.happened(Some(BOX), "here", "two").await;
    let mut body = world
        .open(&scoped, "/api/v1/events/stream?after=0", None)
        .await;
    let first = next_event(&mut body).await.unwrap();
    assert!(
        first.contains("event: event\n") && first.contains("\"action\":\"one\""),
        "{first}"
    );
    assert!(first.contains("id: 1\n"), "{first}");
    drop(body);
    let mut body = world
        .open(&scoped, "/api/v1/events/stream", Some("1"))
        .await;
    assert!(
        next_event(&mut body)
            .await
            .unwrap()
            .contains("\"action\":\"two\"")
    );
    world.happened(Some(BOX), "here", "three").await;
    assert!(
        next_event(&mut body)
            .await
            .unwrap()
            .contains("\"action\":\"three\"")
    );
    let mut asked = request(Method::GET, &scoped, "/api/v1/events/stream", None);
    asked
        .headers_mut()
        .insert("last-event-id", "x".parse().unwrap());
    assert_eq!(world.send(asked).await.status, StatusCode::BAD_REQUEST);
    let listed = world.get(&scoped, "/api/v1/events").await;
    assert!(!listed.text.contains("hidden"), "{}", listed.text);
}

#[tokio::test]
async fn s05_revoking_a_token_ends_what_it_follows() {
    let world = World::new().await;
    let admin = world.admin().await;
    let reader = world
        .token_of("default", &[Permission::Read], json!({}))
        .await;
    let mut body = world.open(&reader, "/api/v1/events/stream", None).await;
    let id = reader["FA1".len()..].split('.').next().unwrap();
    let answer = world
        .delete(&admin, &format!("/api/v1/api-tokens/{id}"))
        .await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(next_event(&mut body).await, None);
}

#[tokio::test]
async fn watching_a_command_ends_with_its_end() {
    let world = World::new().await;
    let admin = world.admin().await;
    let body = json!({"host": "box", "action": {"kind": "ping"}});
    let taken = world.post(&admin, "/api/v1/commands", body).await;
    let id: CommandId = taken.body["id"].as_str().unwrap().parse().unwrap();
    let mut body = world
        .open(&admin, &format!("/api/v1/commands/{id}/watch"), None)
        .await;
    let first = next_event(&mut body).await.unwrap();
    assert!(
        first.contains("event: command") && first.contains("\"state\":\"queued\""),
        "{first}"
    );
    world.dispatch.end(id, succeeded()).await;
    assert!(
        next_event(&mut body)
            .await
            .unwrap()
            .contains("\"state\":\"succeeded\"")
    );
    assert_eq!(next_event(&mut body).await, None);
}

#[tokio::test]
async fn followers_are_bounded() {
    let world = World::new().await;
    let admin = world.admin().await;
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(world.open(&admin, "/api/v1/events/stream", None).await);
    }
    let answer = world.get(&admin, "/api/v1/events/stream").await;
    assert_eq!(answer.code(), codes::BUSY);
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(answer.headers.contains_key(header::RETRY_AFTER));
    // Another token has its own share, as long as there are places.
    let other = world
        .token_of("default", &[Permission::Read], json!({}))
        .await;
    for _ in 0..4 {
        open.push(world.open(&other, "/api/v1/events/stream", None).await);
    }
    let answer = world.get(&other, "/api/v1/events/stream").await;
    assert_eq!(answer.code(), codes::BUSY);
    open.clear();
    drop(world.open(&admin, "/api/v1/events/stream", None).await);
}

/// A client's side of a stream over a real socket.
struct Served {
    url: String,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl World {
    async fn serve(&self) -> Served {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        let router = self.router.clone();
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Served { url, server }
    }

    async fn exec(&self, token: &str) -> String {
        let body = json!({"host": "box", "attach": true,
            "action": {"kind": "exec", "container": "web", "command": ["cat"]}});
        let taken = self.post(token, "/api/v1/commands", body).await;
        taken.body["id"].as_str().unwrap().to_owned()
    }
}

type Socket = tokio_tungstenite::WebSocketStream<tokio::net::TcpStream>;

async fn dial(
    served: &Served,
    token: &str,
    id: &str,
    extra: &[(&'static str, &str)],
) -> Result<Socket, WsError> {
    let url = format!("{}/api/v1/commands/{id}/stream", served.url);
    let mut asked = url.into_client_request().unwrap();
    asked
        .headers_mut()
        .insert("authorization", format!("Bearer {token}").parse().unwrap());
    for (name, value) in extra {
        asked.headers_mut().insert(*name, value.parse().unwrap());
    }
    let address = served.url.strip_prefix("ws://").unwrap();
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    tokio_tungstenite::client_async(asked, socket)
        .await
        .map(|(socket, _)| socket)
}

fn status_of(refused: Result<Socket, WsError>) -> u16 {
    match refused.expect_err("refused") {
        WsError::Http(response) => response.status().as_u16(),
        other => panic!("{other}"),
    }
}

const PROTOCOL: (&str, &str) = ("sec-websocket-protocol", fairlead_api::STREAM_SUBPROTOCOL);

#[tokio::test]
async fn a_stream_carries_frames_both_ways_unread() {
    let world = World::new().await;
    let token = world.admin().await;
    let served = world.serve().await;
    let id = world.exec(&token).await;
    let mut socket = dial(&served, &token, &id, &[PROTOCOL]).await.unwrap();
    for frame in [&b"\0hello"[..], &[255u8; 40_000], b""] {
        let frame = bytes::Bytes::copy_from_slice(frame);
        socket.send(Message::Binary(frame.clone())).await.unwrap();
        loop {
            match tokio::time::timeout(SOON, socket.next())
                .await
                .unwrap()
                .unwrap()
                .unwrap()
            {
                Message::Ping(_) | Message::Pong(_) => {}
                message => {
                    assert_eq!(message, Message::Binary(frame));
                    break;
                }
            }
        }
    }
}

/// A host that has no stream to dial says nothing of it.
#[tokio::test]
async fn a_stream_of_a_command_that_ended_before_it_began_is_over_at_once() {
    let world = World::new().await;
    let token = world.admin().await;
    let served = world.serve().await;
    let id = world.exec(&token).await;
    let mut socket = dial(&served, &token, &id, &[PROTOCOL]).await.unwrap();
    world.dispatch.end(id.parse().unwrap(), succeeded()).await;
    let over = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(SOON, over).await.expect("it is over");
}

/// One that wanted to go on with a stream, and went away before the host could be asked.
#[tokio::test]
async fn a_client_that_has_gone_asks_the_host_for_nothing_more() {
    let world = World::new().await;
    let token = world.admin().await;
    let id = world.exec(&token).await.parse().unwrap();
    world.dispatch.no_streams.store(true, Ordering::SeqCst);
    let asked = || world.dispatch.streams_asked.load(Ordering::SeqCst);
    let stream = world.backend.lasting(id, Client::Keeps, None, false);
    let word = Flow::new(Client::Keeps).resume();
    stream.to_agent.send(word).await.unwrap();
    // From here on time passes as soon as nobody has anything to do.
    tokio::time::pause();
    while asked() < 3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(stream);
    let before = asked();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(asked() <= before + 1, "{} after {before}", asked());
}

/// The access server went first, and the controller before it was back.
#[tokio::test]
async fn a_stream_that_is_held_is_handed_on_by_a_server_that_restarts_as_well() {
    let world = World::new().await;
    let token = world.admin().await;
    let id = world.exec(&token).await.parse().unwrap();
    world.dispatch.no_streams.store(true, Ordering::SeqCst);
    let mut stream = world.backend.lasting(id, Client::Keeps, None, false);
    let mut flow = Flow::new(Client::Keeps);
    let words = [
        flow.resume(),
        frame(Channel::Input, b"typed meanwhile"),
        frame(Channel::Hold, &[]),
    ];
    for word in words {
        flow.on_client(word.clone());
        stream.to_agent.send(word).await.unwrap();
    }
    let heard = tokio::time::timeout(SOON, stream.from_agent.recv()).await;
    assert_eq!(heard.expect("in time"), Some(flow.held()));
    assert_eq!(stream.from_agent.recv().await, None);
}

#[tokio::test]
async fn s01_s04_streams_refuse_browsers_strangers_and_other_tokens() {
    let world = World::new().await;
    let token = world.admin().await;
    let other = world.admin().await;
    let reader = world
        .token_of("default", &[Permission::Read], json!({}))
        .await;
    let served = world.serve().await;
    let id = world.exec(&token).await;
    let origin = ("origin", served.url.as_str());
    assert_eq!(
        status_of(dial(&served, "", &id, &[PROTOCOL, origin]).await),
        403,
        "before any auth"
    );
    assert_eq!(
        status_of(dial(&served, &token, &id, &[PROTOCOL, origin]).await),
        403
    );
    assert_eq!(status_of(dial(&served, "", &id, &[PROTOCOL]).await), 401);
    assert_eq!(
        status_of(dial(&served, &reader, &id, &[PROTOCOL]).await),
        403
    );
    assert_eq!(
        status_of(dial(&served, &other, &id, &[PROTOCOL]).await),
        403
    );
    assert_eq!(
        status_of(dial(&served, &token, &id, &[]).await),
        400,
        "no subprotocol"
    );
    let wrong = ("sec-websocket-protocol", "something");
    assert_eq!(status_of(dial(&served, &token, &id, &[wrong]).await), 400);
    assert_eq!(
        status_of(dial(&served, &token, "0000zz", &[PROTOCOL]).await),
        404
    );
    let ended = id.parse::<CommandId>().unwrap();
    world.dispatch.end(ended, succeeded()).await;
    assert_eq!(
        status_of(dial(&served, &token, &id, &[PROTOCOL]).await),
        409
    );
}

#[tokio::test]
async fn s05_revoking_a_token_cuts_its_streams() {
    let world = World::new().await;
    let admin = world.admin().await;
    let token = world
        .token_of("default", &[Permission::Exec], json!({}))
        .await;
    let served = world.serve().await;
    let id = world.exec(&token).await;
    let mut socket = dial(&served, &token, &id, &[PROTOCOL]).await.unwrap();
    let token_id = token["FA1".len()..].split('.').next().unwrap();
    world
        .delete(&admin, &format!("/api/v1/api-tokens/{token_id}"))
        .await;
    loop {
        let message = tokio::time::timeout(SOON, socket.next())
            .await
            .expect("not cut in time");
        match message {
            Some(Ok(Message::Close(Some(frame)))) => {
                assert!(frame.reason.contains("revoked"), "{frame}");
                break;
            }
            Some(Ok(Message::Ping(_))) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        status_of(dial(&served, &token, &id, &[PROTOCOL]).await),
        401
    );
    assert!(world.live.of(token_id, 0).is_cancelled());
}
