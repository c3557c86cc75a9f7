//! The words of version 1, as its programs said them, and words of a version to come.

use super::*;

/// Everything that instances and the tool said in an upgrade, and in its end.
const TO_SUPERVISOR: &str = r#"{"alive":{"handoff":null}}
{"alive":{"handoff":true}}
"proved"
{"yielded":{"epoch":2}}
{"commands_done":{"epoch":2}}
{"peer":{"released":{"id":"2k6rv9w0000000000000000000"}}}
{"peer":{"open_stream":{"stream":"0a10"}}}
{"upgrade":{"version":"1.1.0"}}
"status"
"#;
/// And the supervisor.
const FROM_SUPERVISOR: &str = r#"{"yield":{"epoch":2}}
{"grant":{"epoch":2,"from":1}}
{"grant":{"epoch":1,"from":null}}
{"gone":{"key":1}}
{"notice":{"in_s":600}}
{"peer":{"released":{"id":"2k6rv9w0000000000000000000"}}}
{"refused":{"why":"an upgrade is under way"}}
"begun"
{"status":{"supervisor":7,"supervisor_start":99,"agent":8,"epoch":3,"phase":"draining","current":"1.1.0","previous":"1.0.0","tries_left":3,"safe":false,"supervisor_version":"1.0.0","returned":{"from":"2.0.0","to":"1.0.0","why":"exit code 3"},"instances":[{"pid":8,"start":100,"version":"1.1.0","epoch":3,"role":"owner"}]}}
"#;

fn same<Word>(transcript: &str)
where
    Word: Serialize + for<'de> Deserialize<'de>,
{
    for line in transcript.lines() {
        let word: Word = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(serde_json::to_string(&word).unwrap(), line);
    }
}

#[test]
fn the_words_of_version_one_mean_what_they_meant() {
    same::<ToSupervisor>(TO_SUPERVISOR);
    same::<FromSupervisor>(FROM_SUPERVISOR);
}

#[test]
fn a_field_of_a_later_version_is_passed_over_and_its_word_is_no_other_word() {
    let later = r#"{"yielded":{"epoch":2,"levitates":true},"#;
    let later = later.trim_end_matches(',').to_owned() + "}";
    let heard: ToSupervisor = serde_json::from_str(&later).unwrap();
    assert_eq!(heard, ToSupervisor::Yielded { epoch: 2 });
    let grant = r#"{"grant":{"epoch":2,"from":1,"for_s":9}}"#;
    let heard: FromSupervisor = serde_json::from_str(grant).unwrap();
    let meant = FromSupervisor::Grant {
        epoch: 2,
        from: Some(1),
    };
    assert_eq!(heard, meant);
    let status = r#"{"supervisor":7,"agent":8,"epoch":3,"mood":"good"}"#;
    let heard: Status = serde_json::from_str(status).unwrap();
    assert_eq!((heard.supervisor, heard.agent), (7, Some(8)));
    for unknown in [r#"{"levitate":{"epoch":2}}"#, r#""levitate""#] {
        assert!(serde_json::from_str::<ToSupervisor>(unknown).is_err());
        assert!(serde_json::from_str::<FromSupervisor>(unknown).is_err());
    }
}
