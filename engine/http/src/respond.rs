//! Building answers. Each carries the request's id, errors too, and is counted.

use crate::access::{AccessGuard, AccessOutcome};
use crate::{ApiError, RequestContext};
use engine_wire::hop::HEADER_REQUEST_ID;
use serde::Serialize;
use telemetry::table::REQUESTS_TOTAL;
use warp::http::StatusCode;
use warp::http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use warp::reply::Response;

/// Model label of requests that name no model that exists: names sent by clients are unbounded.
pub(crate) const NO_MODEL: &str = "";

/// An answer with a JSON body.
pub fn json_response(status: StatusCode, body: &impl Serialize, context: &RequestContext) -> Response {
    let (status, text) = match serde_json::to_string(body) {
        Ok(text) => (status, text),
        Err(_) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            String::from(
                r#"{"error":{"message":"The answer could not be written","type":"server_error","param":null,"code":"internal"}}"#,
            ),
        ),
    };
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    with_request_id(response, context)
}

/// The answer to an error.
pub fn error_response(error: &ApiError, context: &RequestContext) -> Response {
    let mut response = json_response(error.status(), &error.body(), context);
    if let Some(seconds) = error.retry_after_s() {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The answer to an error, noted in the request's record.
pub(crate) fn refused(error: &ApiError, context: &RequestContext, access: &mut AccessGuard) -> Response {
    let response = error_response(error, context);
    access.record.status = response.status().as_u16();
    access.record.outcome =
        if response.status().is_client_error() { AccessOutcome::Rejected } else { AccessOutcome::Failed };
    access.note_write(false);
    response
}

/// An answer of plain text.
pub(crate) fn text_response(
    status: StatusCode,
    text: String,
    content_type: &'static str,
    context: &RequestContext,
) -> Response {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    with_request_id(response, context)
}

/// Names the method that a path allows, as a 405 must.
pub(crate) fn with_allow(mut response: Response, method: &'static str) -> Response {
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(method));
    response
}

/// Echoes the request's id.
pub(crate) fn with_request_id(mut response: Response, context: &RequestContext) -> Response {
    if let Ok(value) = HeaderValue::from_str(&context.request_id) {
        response.headers_mut().insert(HEADER_REQUEST_ID, value);
    }
    response
}

/// Counts an answer by status.
pub(crate) fn counted(response: Response, model: &str, route: &'static str) -> Response {
    let code = response.status().as_str().to_owned();
    metrics::counter!(REQUESTS_TOTAL.name, "model" => model.to_owned(), "route" => route, "code" => code).increment(1);
    response
}
