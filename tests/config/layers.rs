//! Which source wins, and which sources there must be.

use std::path::Path;

use durable_streams_server::config::{Config, ConfigLoadOptions, Origin, StorageMode};

use super::{Case, env, file};

#[test]
fn without_files_and_variables_the_defaults_hold() {
    assert_eq!(env(&[]).load().unwrap(), Config::default());
}

#[test]
fn the_readme_example_selects_acid_storage() {
    let config = env(&[("DS_STORAGE__MODE", "acid"), ("DS_STORAGE__DATA_DIR", "./data")]).load().unwrap();
    assert_eq!(config.storage.mode, StorageMode::Acid);
    assert_eq!(config.storage.data_dir, Path::new("./data"));
}

#[test]
fn each_layer_overrides_the_one_before() {
    let port = |port: u16| format!("[server]\nport = {port}\n");
    let (default, profile, local, named) = (port(1), port(2), port(3), port(4));
    let files = [
        ("default.toml", default.as_str()),
        ("staging.toml", profile.as_str()),
        ("local.toml", local.as_str()),
        ("named.toml", named.as_str()),
    ];
    let port_of = |case: Case| case.load().unwrap().server.bind_address.port();
    assert_eq!(port_of(Case::new(&files[..0], &[])), 4437);
    assert_eq!(port_of(Case::new(&files[..1], &[])), 1);
    assert_eq!(port_of(Case::new(&files[..2], &[]).profile("staging")), 2);
    assert_eq!(port_of(Case::new(&files[..3], &[]).profile("staging")), 3);
    assert_eq!(port_of(Case::new(&files, &[]).profile("staging").config_path("named.toml")), 4);
    let variable = [("DS_SERVER__PORT", "5")];
    assert_eq!(port_of(Case::new(&files, &variable).profile("staging").config_path("named.toml")), 5);
}

#[test]
fn layers_merge_key_by_key() {
    let files = [
        ("default.toml", "[limits]\nmax_streams = 7\nmax_connections = 8\n"),
        ("local.toml", "[limits]\nmax_connections = 9\n"),
    ];
    let limits = Case::new(&files, &[]).load().unwrap().limits;
    assert_eq!((limits.max_streams, limits.max_connections), (7, 9));
}

#[test]
fn the_profile_and_the_directory_can_come_from_variables() {
    let case = Case::new(&[("staging.toml", "[server]\nport = 2\n")], &[]);
    let dir = case.dir.path().to_str().unwrap();
    let options = ConfigLoadOptions::default().with_env([("DS_CONFIG_DIR", dir), ("DS_PROFILE", "staging")]);
    assert_eq!(Config::load(&options).unwrap().server.bind_address.port(), 2);
}

#[test]
fn an_option_wins_over_the_variable_of_the_same_meaning() {
    let files = [("a.toml", "[server]\nport = 1\n"), ("b.toml", "[server]\nport = 2\n")];
    let case = Case::new(&files, &[("DS_PROFILE", "a"), ("DS_CONFIG_DIR", "/nowhere")]).profile("b");
    assert_eq!(case.load().unwrap().server.bind_address.port(), 2);
}

#[test]
fn a_shipped_profile_works_without_its_file() {
    let prod = env(&[]).profile("prod").loaded();
    assert_eq!(prod.config.storage.mode, StorageMode::Acid);
    assert_eq!(prod.config.limits.max_stream_bytes, None);
    let mode = prod.settings.iter().find(|setting| setting.key == "storage.mode").unwrap();
    assert_eq!(mode.origin, Origin::Profile("prod".to_owned()));
}

#[test]
fn a_file_replaces_the_shipped_profile_of_its_name() {
    let config = Case::new(&[("prod.toml", "[server]\nport = 1\n")], &[]).profile("prod").load().unwrap();
    assert_eq!(config.storage.mode, StorageMode::Memory);
    assert_eq!(config.server.bind_address.port(), 1);
}

#[test]
fn the_default_profile_needs_no_file() {
    assert_eq!(env(&[]).profile("default").load().unwrap(), Config::default());
}

#[test]
fn a_profile_nobody_knows_is_refused() {
    let text = env(&[]).profile("prod-mtls").error();
    let expected = "--profile: there is no profile prod-mtls: neither prod-mtls.toml nor one of default, dev, prod, prod-tls";
    assert_eq!(text, expected);
    let text = env(&[("DS_PROFILE", "../etc")]).error();
    assert_eq!(text, "DS_PROFILE: \"../etc\" is not the name of a profile: letters, digits, - _ .");
}

#[test]
fn a_missing_config_file_is_refused() {
    let text = env(&[]).config_path("absent.toml").error();
    assert!(text.starts_with("absent.toml: cannot be read: "), "{text}");
}

#[test]
fn a_missing_config_directory_is_refused_if_it_was_named() {
    let options = ConfigLoadOptions::default().with_config_dir("/no/such/dir").with_env([("A", "")]);
    let text = Config::load(&options).unwrap_err().to_string();
    assert_eq!(text, "--config-dir: \"/no/such/dir\" is not a directory that can be read");
    let options = ConfigLoadOptions::default().with_env([("DS_CONFIG_DIR", "/no/such/dir")]);
    let text = Config::load(&options).unwrap_err().to_string();
    assert_eq!(text, "DS_CONFIG_DIR: \"/no/such/dir\" is not a directory that can be read");
}

#[test]
fn a_file_that_is_not_toml_is_refused_in_one_line_without_its_content() {
    let text = file("[server]\nport = = s3cret\n").error();
    assert!(
        text.starts_with("default.toml: is not valid TOML: TOML parse error at line 2, column 8: "),
        "{text}"
    );
    assert!(!text.contains("s3cret"), "{text}");
    let text = file("[server]\nport = 1\nport = 2\n").error();
    assert!(text.contains("duplicate key"), "{text}");
}

#[test]
fn the_port_alone_keeps_the_server_on_loopback() {
    let config = env(&[("DS_SERVER__PORT", "8080")]).load().unwrap();
    assert_eq!(config.server.bind_address.to_string(), "127.0.0.1:8080");
}

#[test]
fn an_address_wins_over_a_port_of_the_same_layer_or_an_earlier_one() {
    let both = "[server]\nport = 1\nbind_address = \"0.0.0.0:2\"\n";
    assert_eq!(file(both).load().unwrap().server.bind_address.to_string(), "0.0.0.0:2");
    let case =
        Case::new(&[("default.toml", "[server]\nport = 1\n")], &[("DS_SERVER__BIND_ADDRESS", "[::]:2")]);
    assert_eq!(case.load().unwrap().server.bind_address.to_string(), "[::]:2");
}

#[test]
fn a_later_port_changes_only_the_port() {
    let files = [("default.toml", "[server]\nbind_address = \"0.0.0.0:2\"\n")];
    let case = Case::new(&files, &[("DS_SERVER__PORT", "3")]);
    assert_eq!(case.load().unwrap().server.bind_address.to_string(), "0.0.0.0:3");
    let printed = case.loaded().to_string();
    assert!(printed.contains("default.toml, the port: DS_SERVER__PORT\n"), "{printed}");
}

#[test]
fn addresses_are_checked() {
    for right in ["127.0.0.1:0", "[::1]:65535", "0.0.0.0:80"] {
        let config = env(&[("DS_SERVER__BIND_ADDRESS", right)]).load().unwrap();
        assert_eq!(config.server.bind_address.to_string(), right);
    }
    let config = env(&[("DS_SERVER__BIND_ADDRESS", "localhost:80")]).load().unwrap();
    assert_eq!(config.server.bind_address.to_string(), "127.0.0.1:80");
    for wrong in ["", "127.0.0.1", ":80", "127.0.0.1:65536", "::1:80", "example.com:80", "localhost:x"] {
        let text = env(&[("DS_SERVER__BIND_ADDRESS", wrong)]).error();
        let rule = "must be host:port, the host an IP address or localhost";
        assert_eq!(text, format!("DS_SERVER__BIND_ADDRESS: server.bind_address = \"{wrong}\": {rule}"));
    }
}
