//! Stream names and reserved paths: `protocol.md` §2.

use crate::contract::Expectations;
use crate::service::{Caller, JSON, MODES, TEXT, in_each_mode, path, start, start_in};
use crate::support::ServerProcess;
use crate::support::http::Response;

in_each_mode!(
    spellings_of_one_decoded_name_are_one_stream,
    names_are_case_sensitive_bytes,
    longest_and_deepest_names_are_served,
);

/// Everything that can be done with a name.
const METHODS: [&str; 5] = ["PUT", "POST", "GET", "HEAD", "DELETE"];

fn with_every_method(caller: &mut Caller, target: &str, mut check: impl FnMut(Response)) {
    for method in METHODS {
        let body: &[u8] = if matches!(method, "PUT" | "POST") { b"x" } else { b"" };
        check(caller.send(method, target, &[TEXT], body));
    }
}

fn spellings_of_one_decoded_name_are_one_stream(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for spellings in [
        &["a/b", "a%2Fb", "a%2fb", "%61/b", "%61%2F%62"][..],
        &["%C3%BC", "%c3%bc", "ü"],
        &["a%20b"],
        &["a+b", "a%2Bb"],
        &["q%3Fx", "q%3fx"],
        &["h%23x"],
        &["100%25"],
        &["~%7E", "%7E~", "~~"],
        &["a:b@c", "a%3Ab%40c"],
        &["%F0%9F%98%80", "😀"],
        &["%2E%2E%2E", "..."],
        &["a%5Cb"],
    ] {
        caller.create(spellings[0], TEXT, "");
        for spelling in spellings {
            caller.put(spelling, &[TEXT], "").expect_status(200);
            caller.append(spelling, TEXT, "x");
        }
        assert_eq!(caller.content(spellings[0]).len(), spellings.len());
        caller.delete(spellings[spellings.len() - 1]).expect_status(204);
        for spelling in spellings {
            caller.assert_absent(spelling);
        }
    }
}

fn names_are_case_sensitive_bytes(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    // Decoded once: `%2541` is the name `%41`, not `A`. The two spellings of é are different code points.
    let names = [
        "a", "A", "a/b", "A/b", "%2541", "%2525", "%C3%A9", "e%CC%81", "a%20", "a+", "a.", ".a", "-", "%252F",
    ];
    for (index, name) in names.iter().enumerate() {
        caller.create(name, TEXT, index.to_string());
    }
    for (index, name) in names.iter().enumerate() {
        assert_eq!(caller.content(name), index.to_string(), "{name}");
    }
    caller.assert_absent("%C3%89");
}

fn longest_and_deepest_names_are_served(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    let longest = "n".repeat(1024);
    let longest_encoded = "%C3%BC".repeat(512);
    let both = format!("{}/a/b/c/d/e/f/g", "n".repeat(1024 - 14));
    for name in [&*longest, &longest_encoded, &both, "1/2/3/4/5/6/7/8", "1%2F2%2F3%2F4%2F5%2F6%2F7%2F8"] {
        caller.create(name, TEXT, "abc");
        caller.append(name, TEXT, "def");
        assert_eq!(caller.content(name), "abcdef");
        caller.delete(name).expect_status(204);
    }
}

#[test]
fn invalid_names_are_refused_by_every_method() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    let too_long = "n".repeat(1025);
    let too_long_encoded = "%C3%BC".repeat(513);
    let too_long_together = format!("{}/{}", "n".repeat(512), "n".repeat(512));
    for name in [
        "a%0Ab",
        "a%0D%0AX-Injected:%20yes",
        "%00",
        "a%00",
        "%1F",
        "a%09",
        "%7F",
        "%1B%5B31m",
        ".",
        "..",
        "%2E",
        "%2e%2E",
        ".%2E",
        "a/..",
        "a/../b",
        "../a",
        "a/./b",
        "a%2F..%2Fb",
        "..%2F..%2Fetc%2Fpasswd",
        "/",
        "/a",
        "a/",
        "a//b",
        "%2F",
        "a%2F",
        "%2Fa",
        "a%2F%2Fb",
        "a%2F/b",
        "%",
        "a%",
        "a%4",
        "a%4G",
        "a%zz",
        "%FF",
        "a%80",
        "%C3",
        "%C0%AF",
        "%ED%A0%80",
        "%F5%80%80%80",
        &too_long,
        &too_long_encoded,
        &too_long_together,
        "1/2/3/4/5/6/7/8/9",
        "1%2F2%2F3%2F4%2F5%2F6%2F7%2F8%2F9",
    ] {
        with_every_method(&mut caller, &path(name), |answer| {
            assert_eq!(answer.status, 400, "{name}: {answer:?}");
            answer.expect_no_header("X-Injected");
            answer.expect_refusal("INVALID_STREAM_NAME");
        });
        // A preflight is answered all the same.
        caller.send("OPTIONS", &path(name), &[], b"").expect_status(204);
    }
    caller.assert_absent("a");
    caller.assert_absent("b");
}

#[test]
fn name_goes_before_headers_and_body() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    let wrong =
        [("Content-Type", "?"), ("Content-Encoding", "gzip"), ("Stream-TTL", "x"), ("Producer-Id", "")];
    for method in ["PUT", "POST"] {
        caller.send(method, &path("a%00"), &wrong, b"").expect_refusal("INVALID_STREAM_NAME");
    }
    caller.get("a%00?offset=bad&live=bad", &[]).expect_refusal("INVALID_STREAM_NAME");
    caller.send("PATCH", &path("a%00"), &[], b"").expect_refusal("METHOD_NOT_ALLOWED");
}

#[test]
fn limits_on_names_are_configurable() {
    for mode in MODES {
        let server = start_in(
            mode,
            &[("DS_LIMITS__MAX_STREAM_NAME_BYTES", "10"), ("DS_LIMITS__MAX_STREAM_NAME_SEGMENTS", "2")],
        );
        let mut caller = Caller::to(&server);
        for name in ["123456789", "1234567890", "12345/7890", "%C3%BC%C3%BC%C3%BC%C3%BC%C3%BC", "a/b"] {
            caller.create(name, TEXT, "");
        }
        for name in ["12345678901", "12345/78901", "%C3%BC%C3%BC%C3%BC%C3%BC%C3%BCa", "a/b/c", "a%2Fb/c"] {
            caller.put(name, &[TEXT], "").expect_refusal("INVALID_STREAM_NAME");
        }
    }
}

#[test]
fn reserved_paths_are_never_streams() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    for name in [
        "__ds",
        "__ds/",
        "__ds/x",
        "__ds/streams",
        "__ds/stats",
        "%5F%5Fds/x",
        "__ds%2Fx",
        "__ds//x",
        "__ds/%00",
    ] {
        with_every_method(&mut caller, &path(name), |answer| {
            let answer = answer.expect_refusal("NOT_FOUND");
            answer.expect_header("Content-Type", "application/json");
        });
    }
    for name in ["__dsx", "__DS", "a/__ds", "_ds", "__d/s"] {
        caller.create(name, TEXT, "");
    }
}

#[test]
fn base_path_alone_names_nothing() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    for target in [
        "/v1/stream",
        "/v1/stream/",
        "/v1/stream?x",
        "/v1/streamx",
        "/v1/streams/a",
        "/v1",
        "/",
        "/a",
        "//v1/stream/a",
        "/v1//stream/a",
        "/V1/stream/a",
        "/v1/stre%61m/a",
    ] {
        with_every_method(&mut caller, target, |answer| {
            let answer = answer.expect_refusal("NOT_FOUND");
            answer.expect_header("Content-Type", "application/problem+json");
        });
        caller.send("OPTIONS", target, &[], b"").expect_status(204);
    }
}

#[test]
fn root_can_be_the_base_path() {
    for mode in MODES {
        let server = start_in(mode, &[("DS_HTTP__STREAM_BASE_PATH", "/")]);
        let mut caller = Caller::to(&server);
        for target in ["/a", "/a/b", "/v1/stream/c", "/healthz/x"] {
            let created = caller.send("PUT", target, &[TEXT], b"abc").expect_status(201);
            created.expect_header("Location", &format!("{}{target}", server.url()));
            caller.send("POST", target, &[TEXT], b"def").expect_status(204);
            assert_eq!(caller.send("GET", target, &[], b"").text(), "abcdef");
        }
        let fork = [("Stream-Forked-From", "/a")];
        caller.send("PUT", "/fork", &fork, b"").expect_status(201);
        assert_eq!(caller.send("GET", "/fork", &[], b"").text(), "abcdef");
        // Service routes win.
        for (target, text) in [("/healthz", "ok"), ("/readyz", "ready")] {
            assert_eq!(caller.send("GET", target, &[], b"").expect_status(200).text(), text);
            caller.send("PUT", target, &[TEXT], b"x").expect_refusal("METHOD_NOT_ALLOWED");
        }
        caller.send("GET", "/", &[], b"").expect_refusal("NOT_FOUND");
        caller.send("PUT", "/", &[TEXT], b"").expect_refusal("NOT_FOUND");
        caller.send("PUT", "//a", &[TEXT], b"").expect_refusal("INVALID_STREAM_NAME");
        let control = caller.send("GET", "/__ds/x", &[], b"").expect_refusal("NOT_FOUND");
        control.expect_header("Content-Type", "application/json");
    }
}

#[test]
fn any_path_can_be_the_base_path() {
    for base in ["/state", "/v1/streams/", "/a/b/c"] {
        let server = start(&[("DS_HTTP__STREAM_BASE_PATH", base)]);
        let base = base.trim_end_matches('/');
        let mut caller = Caller::to(&server);
        let target = format!("{base}/x/y");
        let created = caller.send("PUT", &target, &[JSON], b"[1]").expect_status(201);
        created.expect_header("Location", &format!("{}{target}", server.url()));
        assert_eq!(caller.send("GET", &target, &[], b"").text(), "[1]");
        let fork = [("Stream-Forked-From", &*target)];
        caller.send("PUT", &format!("{base}/fork"), &fork, b"").expect_status(201);
        for other in ["/x/y", "/v1/stream/x/y", base, &format!("{base}/"), &format!("{base}x/y")] {
            caller.send("GET", other, &[], b"").expect_refusal("NOT_FOUND");
        }
    }
}
