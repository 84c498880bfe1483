//! What the lifetime headers may say, and what it means.

use super::*;

const TTL: &str = "Stream-TTL";
const EXPIRES_AT: &str = "Stream-Expires-At";

/// A day that no test reaches.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[tokio::test]
async fn a_ttl_of_0_is_created_and_absent_from_the_next_request_on() {
    in_each_mode(async |server| {
        let created = server.create("brief", &[(TTL, "0"), OCTETS]).await;
        assert_eq!(created.header("Stream-Next-Offset"), Some("0000000000000000_0000000000000000"));
        assert!(created.header("Location").is_some());
        assert_absent(&server, "brief").await;
        // Its name is free, whatever the configuration.
        server.create("brief", &[(TTL, "0"), ("Content-Type", "text/plain")]).await;
        server.create("brief", &[("Content-Type", "application/json")]).await;
    })
    .await;
}

#[tokio::test]
async fn an_instant_in_the_past_is_created_and_absent_from_the_next_request_on() {
    in_each_mode(async |server| {
        for instant in ["2030-03-17T17:46:40Z", "2001-01-01T00:00:00Z", "0000-01-01T00:00:00Z"] {
            let created = server.request("PUT", "past", &[(EXPIRES_AT, instant), OCTETS], "content").await;
            let created = created.expect(201);
            assert_eq!(created.header("Stream-Next-Offset"), Some("0000000000000000_0000000000000007"));
            assert_absent(&server, "past").await;
        }
    })
    .await;
}

async fn assert_absent(server: &Server, name: &str) {
    server.get(name).await.expect(404);
    server.get(&format!("{name}?offset=now")).await.expect(404);
    server.get(&format!("{name}?offset=-1&live=long-poll")).await.expect(404);
    server.get(&format!("{name}?offset=-1&live=sse")).await.expect(404);
    server.request("HEAD", name, &[], "").await.expect(404);
    server.request("POST", name, &[OCTETS], "x").await.expect(404);
    server.request("POST", name, &[("Stream-Closed", "true")], "").await.expect(404);
    server.request("DELETE", name, &[], "").await.expect(404);
    server
        .request("PUT", "fork", &[("Stream-Forked-From", &format!("/v1/stream/{name}"))], "")
        .await
        .expect(404);
}

#[tokio::test]
async fn the_largest_ttl_outlives_everything() {
    in_each_mode(async |server| {
        server.create("old", &[(TTL, "9007199254740991")]).await;
        server.pass(DAY * 365 * 1000);
        let head = server.request("HEAD", "old", &[], "").await.expect(200);
        assert_eq!(head.header(TTL), Some("9007199254740991"));
        server.request("POST", "old", &[OCTETS], "x").await.expect(204);
        server.pass(DAY * 365 * 100_000);
        server.get("old").await.expect(200);
    })
    .await;
}

#[tokio::test]
async fn the_latest_instant_outlives_everything() {
    in_each_mode(async |server| {
        server.create("old", &[(EXPIRES_AT, "9999-12-31T23:59:59.999999999Z")]).await;
        server.pass(DAY * 365 * 1000);
        server.expect_status("old", 200).await;
    })
    .await;
}

#[tokio::test]
async fn malformed_ttls_create_nothing() {
    in_each_mode(async |server| {
        let malformed = [
            "9007199254740992",
            "18446744073709551616",
            "99999999999999999999999999",
            "",
            "-1",
            "+1",
            "01",
            "00",
            "1.0",
            "1e3",
            "0x10",
            "1 0",
            "ten",
        ];
        for value in malformed {
            let refused = server.request("PUT", "never", &[(TTL, value)], "").await;
            assert_eq!(refused.status.as_u16(), 400, "{value:?}");
            assert!(refused.text().await.contains("BAD_REQUEST"), "{value:?}");
            server.expect_status("never", 404).await;
        }
    })
    .await;
}

#[tokio::test]
async fn malformed_instants_create_nothing() {
    in_each_mode(async |server| {
        let malformed = [
            "",
            "2040-01-01",
            "2040-01-01T00:00:00",
            "2040-01-01 00:00:00Z",
            "2040-02-30T00:00:00Z",
            "2040-01-01T25:00:00Z",
            "2040-01-01T00:00:00.Z",
            "2040-01-01T00:00:00+0100",
            "2208988800",
            "tomorrow",
        ];
        for value in malformed {
            let refused = server.request("PUT", "never", &[(EXPIRES_AT, value)], "").await;
            assert_eq!(refused.status.as_u16(), 400, "{value:?}");
            server.expect_status("never", 404).await;
        }
        let both = [(TTL, "10"), (EXPIRES_AT, "2040-01-01T00:00:00Z")];
        server.request("PUT", "never", &both, "").await.expect(400);
        server.expect_status("never", 404).await;
    })
    .await;
}

#[tokio::test]
async fn an_instant_in_another_zone_is_the_same_configuration() {
    in_each_mode(async |server| {
        server.create("zoned", &[(EXPIRES_AT, "2040-01-01T00:00:00Z")]).await;
        let same = [
            "2040-01-01T00:00:00Z",
            "2040-01-01T00:00:00+00:00",
            "2040-01-01T01:00:00+01:00",
            "2039-12-31T18:30:00-05:30",
            "2040-01-01T00:00:00.000Z",
            "2040-01-01T00:00:00.000000000000Z",
            "2040-01-01t00:00:00z",
        ];
        for value in same {
            let confirmed = server.request("PUT", "zoned", &[(EXPIRES_AT, value)], "").await;
            assert_eq!(confirmed.status.as_u16(), 200, "{value}");
        }
        let other = ["2040-01-01T00:00:00.001Z", "2040-01-01T00:00:00+01:00", "2040-01-01T00:00:01Z"];
        for value in other {
            let refused = server.request("PUT", "zoned", &[(EXPIRES_AT, value)], "").await;
            assert_eq!(refused.status.as_u16(), 409, "{value}");
        }
        server.request("PUT", "zoned", &[], "").await.expect(409);
        server.request("PUT", "zoned", &[(TTL, "10")], "").await.expect(409);
        // Shown as it was given.
        let head = server.request("HEAD", "zoned", &[], "").await.expect(200);
        assert_eq!(head.header(EXPIRES_AT), Some("2040-01-01T00:00:00Z"));
        assert_eq!(head.header(TTL), None);
    })
    .await;
}

#[tokio::test]
async fn a_ttl_is_shown_as_given_and_compared_as_a_number() {
    in_each_mode(async |server| {
        server.create("sliding", &[(TTL, "100")]).await;
        server.pass(SECOND * 60);
        let head = server.request("HEAD", "sliding", &[], "").await.expect(200);
        assert_eq!(head.header(TTL), Some("100"));
        server.request("PUT", "sliding", &[(TTL, "100")], "").await.expect(200);
        server.request("PUT", "sliding", &[(TTL, "101")], "").await.expect(409);
        server.request("PUT", "sliding", &[], "").await.expect(409);
    })
    .await;
}

#[tokio::test]
async fn an_instant_takes_effect_to_the_millisecond() {
    in_each_mode(async |server| {
        // 1.25 s after the start, in a zone of its own.
        server.create("precise", &[(EXPIRES_AT, "2030-03-17T20:46:41.25+03:00")]).await;
        server.pass(Duration::from_millis(1249));
        server.expect_status("precise", 200).await;
        server.pass(MILLISECOND);
        server.expect_status("precise", 404).await;
    })
    .await;
}

#[tokio::test]
async fn an_expired_name_can_be_created_anew_with_any_configuration() {
    in_each_mode(async |server| {
        let first = [(TTL, "10"), ("Content-Type", "text/plain")];
        server.request("PUT", "again", &first, "old content").await.expect(201);
        server.pass(SECOND * 10);
        server.create("again", &[("Content-Type", "application/json"), (TTL, "20")]).await;
        assert_eq!(server.get("again").await.expect(200).text().await, "[]");
        // The old deadline means nothing to the new stream.
        server.pass(SECOND * 15);
        server.expect_status("again", 200).await;
    })
    .await;
}
