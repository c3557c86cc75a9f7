use fairlead_identity::authority::Authority;

use super::*;

fn desk(dir: &std::path::Path) -> Desk {
    let root = Authority::new_root("a.example", 1_800_000_000).unwrap();
    let root = Root::from_der(root.chain()[0].clone()).unwrap();
    let recordings = Recordings::open(dir, u64::MAX).unwrap();
    Desk::new("https://eu.example.com".to_owned(), recordings, root)
}

#[tokio::test(start_paused = true)]
async fn a_region_without_its_centre_has_an_hour_from_the_moment_it_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let desk = desk(dir.path());
    desk.attached(&["https://fleet.example.com".to_owned()], 0);
    tokio::time::advance(CUT_OFF_MAX * 2).await;
    assert!(!desk.is_forgotten());
    desk.detached();
    tokio::time::advance(CUT_OFF_MAX - Duration::from_secs(1)).await;
    // Each vain try to connect says it again.
    desk.detached();
    assert!(!desk.is_forgotten());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(desk.is_forgotten());
    desk.attached(&[], 0);
    assert!(!desk.is_forgotten());
}

#[tokio::test]
async fn who_asks_is_told_the_answer_to_its_own_question() {
    let dir = tempfile::tempdir().unwrap();
    let desk = desk(dir.path());
    let (first, answered) = oneshot::channel();
    let (second, unanswered) = oneshot::channel();
    lock(&desk.asked).insert(1, first);
    lock(&desk.asked).insert(2, second);
    let answer = |request| TerminalAnswer {
        request,
        code: "x".to_owned(),
        ..TerminalAnswer::default()
    };
    desk.answered(answer(7));
    desk.answered(answer(1));
    assert_eq!(answered.await.unwrap().request, 1);
    // Nobody answers any more.
    desk.detached();
    assert!(unanswered.await.is_err());
}

#[test]
fn tickets_and_recordings_go_by_the_centres_clock() {
    let dir = tempfile::tempdir().unwrap();
    let desk = desk(dir.path());
    desk.attached(&[], 70_000_000);
    assert_eq!(desk.centre_time(100_000_000), 30_000_000);
    desk.attached(&[], -70_000_000);
    assert_eq!(desk.centre_time(100_000_000), 170_000_000);
}
