use std::io::Read;

use super::freezing::{Thawed, thawed_info, thawed_shared};
use super::*;
use crate::recording::file::Recordings;
use crate::recording::{About, Header, verify};

const ID: CommandId = CommandId::from_bytes([1; 16]);

/// A session with the agent's end and a place for pages in the test's hands.
struct Fixture {
    to_agent: mpsc::Receiver<Bytes>,
    from_agent: mpsc::Sender<Bytes>,
    pages: mpsc::Sender<Page>,
    ends: Ends,
    cut: CancellationToken,
    shared: Arc<Shared>,
    ended: tokio::task::JoinHandle<Ended>,
    recordings: Recordings,
    _dir: tempfile::TempDir,
}

struct TestPage {
    to: mpsc::Sender<FromPage>,
    from: mpsc::Receiver<ToPage>,
}

async fn start() -> Fixture {
    let (session, s) = made(Ends::default()).await;
    let ended = tokio::spawn(async move {
        match session.run(async { None }).await {
            Finished::Ended(ended) => *ended,
            Finished::Frozen(_) => panic!("nothing is frozen here"),
        }
    });
    Fixture { ended, ..s }
}

/// A session that does not run yet.
async fn made(ends: Ends) -> (Session, Fixture) {
    let dir = tempfile::tempdir().unwrap();
    let recordings = Recordings::open(dir.path(), u64::MAX).unwrap();
    let header = Header {
        version: 2,
        width: 80,
        height: 25,
        timestamp: 0,
        title: String::new(),
        fairlead: About::default(),
    };
    let recorder = recordings.begin(ID, header, 0).await.unwrap();
    let (to, to_agent) = mpsc::channel(2);
    let (from_agent, from) = mpsc::channel(2);
    let (pages, coming) = mpsc::channel(2);
    let cut = CancellationToken::new();
    let shared = Arc::new(Shared {
        info: Info {
            session: ID,
            user: "ada".to_owned(),
            token_id: "t".to_owned(),
            tenant: "default".to_owned(),
            region: "r".to_owned(),
            host_id: HostId::from_bytes([2; 16]),
            host: "vm".to_owned(),
            container: "web".to_owned(),
            container_id: "c".to_owned(),
            exec_user: String::new(),
            size: (80, 25),
        },
        started_us: 0,
        has_page: AtomicBool::new(true),
        output: AtomicU64::new(0),
        input: AtomicU64::new(0),
        typed_us: AtomicI64::new(0),
    });
    let pipe = Pipe {
        to_agent: to,
        from_agent: from,
        cut: cut.clone(),
    };
    let now: Now = Arc::new(|| 7);
    let session = Session::new(
        Arc::clone(&shared),
        pipe,
        recorder,
        coming,
        ends.clone(),
        now,
    );
    let fixture = Fixture {
        to_agent,
        from_agent,
        pages,
        ends,
        cut,
        shared,
        // There is nothing to wait for yet.
        ended: tokio::spawn(std::future::pending()),
        recordings,
        _dir: dir,
    };
    (session, fixture)
}

impl Fixture {
    async fn page(&self, go_on_at: Option<u64>) -> TestPage {
        let (to, from_page) = mpsc::channel(4);
        let (to_page, from) = mpsc::channel(4);
        let page = Page {
            to: to_page,
            from: from_page,
            size: (80, 25),
            go_on_at,
        };
        self.pages.send(page).await.ok().unwrap();
        TestPage { to, from }
    }

    async fn say(&self, channel: Channel, data: &[u8]) {
        self.from_agent.send(frame(channel, data)).await.unwrap();
    }

    async fn recording(&self) -> String {
        let mut text = String::new();
        let mut file = self.recordings.read(ID).await.unwrap().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }
}

impl TestPage {
    async fn hear(&mut self) -> ToPage {
        self.from.recv().await.expect("the session says something")
    }

    /// The first byte of output that comes, the input received, and whether there is a gap.
    async fn open(&mut self) -> (u64, u64, bool) {
        match self.hear().await {
            ToPage::Say(Down::Open {
                from,
                received,
                gap,
                ..
            }) => (from, received, gap),
            other => panic!("not open but {other:?}"),
        }
    }

    async fn output(&mut self, length: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < length {
            if let ToPage::Output(bytes) = self.hear().await {
                all.extend_from_slice(&bytes);
            }
        }
        all
    }

    async fn end(&mut self) -> End {
        loop {
            if let ToPage::Say(Down::Ended(end)) = self.hear().await {
                return end;
            }
        }
    }

    async fn input(&self, bytes: &[u8]) {
        let bytes = Bytes::copy_from_slice(bytes);
        self.to.send(FromPage::Input(bytes)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_go_both_ways_and_are_recorded_but_for_the_input() {
    let mut s = start().await;
    let mut page = s.page(None).await;
    assert_eq!(page.open().await, (0, 0, false));
    s.say(Channel::Begun, b"").await;
    assert!(matches!(page.hear().await, ToPage::Say(Down::Begun)));
    page.input(b"secret\r").await;
    assert_eq!(
        s.to_agent.recv().await.unwrap(),
        frame(Channel::Input, b"secret\r")
    );
    assert!(matches!(page.hear().await, ToPage::Say(Down::Taken(7))));
    s.say(Channel::Output, "grüß".as_bytes()).await;
    assert_eq!(page.output(6).await, "grüß".as_bytes());
    let resize = Up::Resize {
        columns: 100,
        rows: 30,
    };
    page.to.send(FromPage::Say(resize)).await.unwrap();
    let said = s.to_agent.recv().await.unwrap();
    assert_eq!(
        said,
        frame(Channel::Resize, br#"{"columns":100,"rows":30}"#)
    );
    s.say(
        Channel::End,
        br#"{"state":"failed","code":"exit_code","exit_code":3}"#,
    )
    .await;
    let end = page.end().await;
    assert_eq!((&end.code[..], end.exit_code), ("", Some(3)));
    page.to.send(FromPage::HeardEnd).await.unwrap();
    let ended = s.ended.await.unwrap();
    assert_eq!((ended.output, ended.input), (6, 7));
    let text = {
        let mut text = String::new();
        let mut file = s.recordings.read(ID).await.unwrap().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    };
    assert_eq!(verify(&text).unwrap().1, ended.recording);
    assert!(text.contains("grüß") && text.contains("100x30"), "{text}");
    assert!(!text.contains("secret"), "input is not recorded");
}

#[tokio::test(start_paused = true)]
async fn s15_nothing_is_passed_on_before_the_far_side_has_begun() {
    let mut s = start().await;
    let mut page = s.page(None).await;
    page.open().await;
    page.input(b"rm -rf /\r").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(s.to_agent.try_recv().is_err());
    // The far side refuses: what was typed goes nowhere, and both halves end.
    drop(s.from_agent);
    assert_eq!(page.end().await.code, codes::STREAM_LOST);
    s.ended.await.unwrap();
    assert!(s.to_agent.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_page_that_shows_nothing_makes_the_process_wait_and_not_the_input() {
    let mut s = start().await;
    let mut page = s.page(None).await;
    page.open().await;
    s.say(Channel::Begun, b"").await;
    let piece = vec![b'y'; STREAM_CHUNK_BYTES];
    let mut sent = 0u64;
    while tokio::time::timeout(
        Duration::from_secs(1),
        s.from_agent.send(frame(Channel::Output, &piece)),
    )
    .await
    .is_ok()
    {
        sent += 1;
        // It is taken out of the socket, and not shown.
        while page.from.try_recv().is_ok() {}
        assert!(sent < 40, "a flood is held back");
    }
    page.input(b"\x03").await;
    assert_eq!(
        s.to_agent.recv().await.unwrap(),
        frame(Channel::Input, b"\x03")
    );
    page.to
        .send(FromPage::Say(Up::Shown(200_000)))
        .await
        .unwrap();
    s.from_agent
        .send(frame(Channel::Output, &piece))
        .await
        .unwrap();
    assert!(s.shared.output.load(Ordering::Relaxed) <= 13 * 32 * 1024);
}

#[tokio::test(start_paused = true)]
async fn another_page_goes_on_at_the_very_byte_and_the_first_is_let_go() {
    let s = start().await;
    let mut first = s.page(None).await;
    first.open().await;
    s.say(Channel::Begun, b"").await;
    s.say(Channel::Output, b"0123456789").await;
    first.output(10).await;
    first.to.send(FromPage::Say(Up::Shown(4))).await.unwrap();
    drop(first);
    s.say(Channel::Output, b"abc").await;
    let mut second = s.page(Some(6)).await;
    assert_eq!(second.open().await, (6, 0, false));
    assert_eq!(second.output(7).await, b"6789abc");
    // A page loaded anew gets all that is kept; the one before is told.
    let mut third = s.page(None).await;
    assert_eq!(third.open().await, (0, 0, false));
    assert_eq!(third.output(13).await, b"0123456789abc");
    let moved = second.end().await;
    assert_eq!(
        (&moved.code[..], moved.resumable),
        (codes::ALREADY_EXISTS, true)
    );
}

#[tokio::test(start_paused = true)]
async fn a_session_that_nobody_comes_back_to_ends_after_a_minute() {
    let mut s = start().await;
    let mut page = s.page(None).await;
    page.open().await;
    drop(page);
    let before = Instant::now();
    let ended = s.ended.await.unwrap();
    assert_eq!(ended.end.code, codes::TIMEOUT);
    assert!((60..62).contains(&before.elapsed().as_secs()));
    assert!(
        s.to_agent.recv().await.is_none(),
        "the agent's stream is over"
    );
}

#[tokio::test(start_paused = true)]
async fn a_page_that_broke_before_it_heard_of_the_end_comes_back_and_hears_it() {
    let s = start().await;
    let mut page = s.page(None).await;
    page.open().await;
    s.say(Channel::Output, b"bye").await;
    s.say(
        Channel::End,
        br#"{"state":"failed","code":"exit_code","exit_code":4}"#,
    )
    .await;
    assert_eq!(page.end().await.exit_code, Some(4));
    // Nothing says that it came over the wire.
    drop(page);
    let mut page = s.page(Some(0)).await;
    assert_eq!(page.output(3).await, b"bye");
    assert_eq!(page.end().await.exit_code, Some(4));
    page.to.send(FromPage::HeardEnd).await.unwrap();
    assert_eq!(s.ended.await.unwrap().end.exit_code, Some(4));
}

#[tokio::test(start_paused = true)]
async fn s05_a_revoked_token_a_kick_or_a_revoked_host_ends_it_at_once() {
    for which in 0..3 {
        let mut s = start().await;
        let mut page = s.page(None).await;
        page.open().await;
        let code = match which {
            0 => {
                s.ends.token.cancel();
                codes::UNAUTHENTICATED
            }
            1 => {
                s.ends.kick.end(End::new(codes::WITHDRAWN, "x"));
                codes::WITHDRAWN
            }
            _ => {
                s.cut.cancel();
                codes::REVOKED
            }
        };
        assert_eq!(page.end().await.code, code);
        (&mut s.ended).await.unwrap();
        assert!(s.recording().await.contains(" end"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_that_sends_beyond_its_window_is_let_go_and_memory_is_bounded() {
    let s = start().await;
    let mut page = s.page(None).await;
    page.open().await;
    // The process has not begun, so nothing is taken from here.
    for _ in 0..3 {
        page.input(&vec![0; 30_000]).await;
    }
    assert!(page.from.recv().await.is_none(), "let go");
    assert!(!s.shared.has_page.load(Ordering::Relaxed));
    let mut next = s.page(None).await;
    assert_eq!(
        next.open().await.1,
        60_000,
        "what was received is not asked for again"
    );
}

/// A host that can hold terminals, seen from the server.
struct Host {
    from_server: mpsc::Receiver<Bytes>,
    to_server: mpsc::Sender<Bytes>,
}

impl Host {
    async fn hear(&mut self) -> (Channel, Bytes) {
        parse(self.from_server.recv().await.unwrap()).unwrap()
    }

    async fn say(&self, channel: Channel, data: &[u8]) {
        self.to_server.send(frame(channel, data)).await.unwrap();
    }
}

fn position(output: u64, input: u64) -> [u8; 16] {
    Position { output, input }.to_bytes()
}

#[tokio::test(start_paused = true)]
async fn a_session_that_was_frozen_goes_on_at_the_very_byte_both_ways() {
    let (session, s) = made(Ends::default()).await;
    let ends = s.ends.clone();
    let run = tokio::spawn(session.run(async { None }));
    let mut page = s.page(None).await;
    page.open().await;
    let mut host = Host {
        from_server: s.to_agent,
        to_server: s.from_agent,
    };
    host.say(Channel::Begun, CAN_BE_HELD).await;
    assert_eq!(host.hear().await.0, Channel::Keep);
    page.input(b"abcdef").await;
    assert_eq!(&host.hear().await.1[..], b"abcdef");
    host.say(Channel::Output, b"0123").await;
    assert_eq!(page.output(4).await, b"0123");
    page.to.send(FromPage::Say(Up::Shown(2))).await.unwrap();
    ends.shutdown.cancel();
    assert_eq!(host.hear().await.0, Channel::Hold);
    // This was on its way.
    host.say(Channel::Output, b"45").await;
    host.say(Channel::Held, &position(6, 4)).await;
    let Finished::Frozen(frozen) = run.await.unwrap() else {
        panic!("it ended");
    };
    while let Some(said) = page.from.recv().await {
        assert!(!matches!(said, ToPage::Say(Down::Ended(_))), "no last word");
    }

    let (to, from_server) = mpsc::channel(4);
    let (to_server, from) = mpsc::channel(4);
    let (pages, coming) = mpsc::channel(2);
    let info = thawed_info(&frozen).unwrap();
    let recording = frozen.recording.clone().unwrap();
    let on = Thawed {
        shared: thawed_shared(&frozen, info),
        pipe: Pipe {
            to_agent: to,
            from_agent: from,
            cut: CancellationToken::new(),
        },
        recorder: s.recordings.thaw(ID, &recording).await.unwrap(),
        pages: coming,
        ends: Ends::default(),
        now: Arc::new(|| 7),
        age: Duration::from_secs(20),
    };
    let session = Session::thawed(&frozen, on).unwrap();
    let run = tokio::spawn(session.run(async { None }));
    let mut host = Host {
        from_server,
        to_server,
    };
    let (channel, at) = host.hear().await;
    assert_eq!((channel, &at[..]), (Channel::Resume, &position(6, 4)[..]));
    let s = Fixture {
        pages,
        ..start().await
    };
    let mut page = s.page(Some(4)).await;
    assert_eq!(page.open().await, (4, 6, false));
    host.say(Channel::Begun, CAN_BE_HELD).await;
    assert_eq!(page.output(2).await, b"45");
    assert_eq!(host.hear().await.0, Channel::Keep);
    assert_eq!(host.hear().await.0, Channel::Resize);
    assert_eq!(&host.hear().await.1[..], b"ef", "what was not taken, once");
    page.input(b"gh").await;
    assert_eq!(&host.hear().await.1[..], b"gh");
    host.say(Channel::Taken, &position(0, 99)).await;
    assert_eq!(page.end().await.code, codes::PROTOCOL_VIOLATION);
    drop(page);
    let Finished::Ended(ended) = run.await.unwrap() else {
        panic!("it is frozen");
    };
    assert_eq!((ended.output, ended.input), (6, 8));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_held_ends_with_its_server_and_says_so() {
    // A host of an older version; one that does not answer; one that is not at the byte that it says.
    for which in 0..3 {
        let (session, s) = made(Ends::default()).await;
        let (ends, run) = (s.ends.clone(), tokio::spawn(session.run(async { None })));
        let mut page = s.page(None).await;
        page.open().await;
        let said: &[u8] = if which == 0 { b"" } else { CAN_BE_HELD };
        s.say(Channel::Begun, said).await;
        assert!(matches!(page.hear().await, ToPage::Say(Down::Begun)));
        ends.shutdown.cancel();
        let mut host = Host {
            from_server: s.to_agent,
            to_server: s.from_agent,
        };
        if which == 2 {
            while host.hear().await.0 != Channel::Hold {}
            host.say(Channel::Held, &position(1, 0)).await;
        }
        let code = page.end().await.code;
        let Finished::Ended(ended) = run.await.unwrap() else {
            panic!("it is frozen");
        };
        let expected = if which == 2 {
            codes::PROTOCOL_VIOLATION
        } else {
            codes::BUSY
        };
        assert_eq!((&code[..], &ended.end.code[..]), (expected, expected));
        drop(host.to_server);
    }
}
