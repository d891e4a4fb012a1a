module github.com/livinguniverse/stoker/services/gateway

go 1.26.0
