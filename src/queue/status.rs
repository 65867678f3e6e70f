//! stub
pub fn system_status(
    _c: &super::Context,
    _s: &crate::plan::Snapshot,
    _u: std::time::Duration,
) -> String {
    String::new()
}
