// What each route does. Handlers throw Error; the server answers with it.
#pragma once

#include "api/exchange.h"

namespace thaw::api {

void get_version(Exchange& exchange);
void get_doctor(Exchange& exchange);
void deploy_pod(Exchange& exchange);
void list_pods(Exchange& exchange);
void get_pod(Exchange& exchange);
void remove_pod(Exchange& exchange);
void scale_pod(Exchange& exchange);
void stop_pod(Exchange& exchange);
void create_checkpoint(Exchange& exchange);
void list_replicas(Exchange& exchange);
void get_replica(Exchange& exchange);
void stop_replica(Exchange& exchange);
void list_checkpoints(Exchange& exchange);
void get_checkpoint(Exchange& exchange);
void remove_checkpoint(Exchange& exchange);
void verify_checkpoint(Exchange& exchange);
void compress_checkpoint(Exchange& exchange);
void retry_checkpoint(Exchange& exchange);
void get_metrics(Exchange& exchange);
void list_secrets(Exchange& exchange);
void put_secret(Exchange& exchange);
void remove_secret(Exchange& exchange);
void list_tokens(Exchange& exchange);
void create_token(Exchange& exchange);
void remove_token(Exchange& exchange);
void import_image(Exchange& exchange);
void list_images(Exchange& exchange);
void remove_image(Exchange& exchange);

void stream_logs(Exchange& exchange);      // logs.cc
void stream_events(Exchange& exchange);    // events.cc
void exec_in_replica(Exchange& exchange);  // exec.cc

}  // namespace thaw::api
