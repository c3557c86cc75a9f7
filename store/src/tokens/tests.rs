//! What a token opens, how often, and how each refusal is told apart.

use super::*;
use crate::Store;

const HOUR: i64 = 3_600_000_000;

fn join(id: &str, uses_max: u32) -> JoinTokenRow {
    JoinTokenRow {
        id: id.to_owned(),
        tenant: "t".to_owned(),
        purpose: PURPOSE_HOST.to_owned(),
        region: "r".to_owned(),
        secret_hash: [7; 32],
        uses_max,
        created_us: 1,
        expires_us: HOUR,
        ..JoinTokenRow::default()
    }
}

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s.db")).unwrap();
    (dir, store)
}

#[tokio::test]
async fn each_refusal_has_its_code() {
    let (_dir, store) = open();
    store
        .write(|tx| {
            assert!(tx.insert_join_token(&join("a", 2))?);
            assert!(!tx.insert_join_token(&join("a", 2))?);
            let check = |id: &str, hash, purpose: &str, region, now| {
                tx.check_join_token(id, &hash, purpose, region, now)
                    .map(|r| r.map(|r| r.uses))
            };
            let good = [7; 32];
            assert_eq!(check("a", good, PURPOSE_HOST, Some("r"), 5)?, Ok(0));
            assert_eq!(
                check("b", good, PURPOSE_HOST, None, 5)?,
                Err(codes::TOKEN_UNKNOWN)
            );
            assert_eq!(
                check("a", [8; 32], PURPOSE_HOST, None, 5)?,
                Err(codes::TOKEN_UNKNOWN)
            );
            assert_eq!(
                check("a", good, PURPOSE_HOST, Some("other"), 5)?,
                Err(codes::TOKEN_FOREIGN)
            );
            assert_eq!(
                check("a", good, PURPOSE_ACCESS_SERVER, None, 5)?,
                Err(codes::TOKEN_FOREIGN)
            );
            assert_eq!(
                check("a", good, PURPOSE_HOST, None, HOUR)?,
                Err(codes::TOKEN_EXPIRED)
            );
            for uses in 1..=2 {
                let row = tx.consume_join_token("a", &good, PURPOSE_HOST, None, 5)?;
                assert_eq!(row.map(|r| r.uses), Ok(uses));
            }
            let third = tx.consume_join_token("a", &good, PURPOSE_HOST, None, 5)?;
            assert_eq!(third, Err(codes::TOKEN_USED_UP));
            assert!(!tx.revoke_join_token("other tenant", "a", 9)?);
            assert!(tx.revoke_join_token("t", "a", 9)?);
            assert!(!tx.revoke_join_token("t", "a", 10)?);
            assert_eq!(
                check("a", good, PURPOSE_HOST, None, 5)?,
                Err(codes::TOKEN_REVOKED)
            );
            Ok(())
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn many_at_once_get_exactly_the_uses_there_are() {
    let (_dir, store) = open();
    store
        .write(|tx| tx.insert_join_token(&join("a", 5)))
        .await
        .unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let store = store.clone();
        tasks.spawn(async move {
            store
                .write(|tx| tx.consume_join_token("a", &[7; 32], PURPOSE_HOST, None, 5))
                .await
                .unwrap()
                .is_ok()
        });
    }
    let let_in = tasks.join_all().await.into_iter().filter(|ok| *ok).count();
    assert_eq!(let_in, 5);
}

#[tokio::test]
async fn an_api_token_is_found_by_its_secret_only() {
    let (_dir, store) = open();
    store
        .write(|tx| {
            let row = ApiTokenRow {
                id: "x".to_owned(),
                tenant: "t".to_owned(),
                name: "ci".to_owned(),
                secret_hash: [1; 32],
                permissions: vec!["read".to_owned(), "admin".to_owned()],
                scope: "{}".to_owned(),
                created_us: 1,
                expires_us: 100,
                ..ApiTokenRow::default()
            };
            assert!(!tx.has_good_api_token("admin", 5)?);
            assert!(tx.insert_api_token(&row)?);
            assert!(tx.has_good_api_token("admin", 5)?);
            assert!(!tx.has_good_api_token("admin", 100)?);
            assert!(!tx.has_good_api_token("exec", 5)?);
            assert_eq!(tx.api_token_by_secret("x", &[1; 32])?, Some(row.clone()));
            assert_eq!(tx.api_token_by_secret("x", &[2; 32])?, None);
            assert_eq!(tx.api_token_by_secret("y", &[1; 32])?, None);
            assert!(row.is_good(99) && !row.is_good(100));
            assert!(tx.touch_api_token("x", LAST_USED_STEP_US)?);
            assert!(!tx.touch_api_token("x", LAST_USED_STEP_US + 1)?);
            assert!(tx.touch_api_token("x", 2 * LAST_USED_STEP_US)?);
            assert!(tx.api_tokens("other", 10)?.is_empty());
            assert_eq!(tx.api_tokens("t", 10)?.len(), 1);
            assert!(!tx.revoke_api_token("other", "x", 7)?);
            assert!(tx.revoke_api_token("t", "x", 7)?);
            assert!(!tx.has_good_api_token("admin", 5)?);
            Ok(())
        })
        .await
        .unwrap();
}
